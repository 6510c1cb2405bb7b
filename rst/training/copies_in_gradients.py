"""A step part by part, after which each copy of w0 lies in the memory of a gradient that the step has used.

The copy that a selection needs so takes no memory of its own, beyond one part's.
"""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim import optimizer as shared

from rst.shards.blocks import is_sharded, local
from rst.training.optimizer_steps import only
from rst.training.sparse_base import SparseBaseWeights

_PART = 1 << 25  # bytes of weights, unless one parameter has more: enough that launches cost nothing


def steps_each_alone(optimizer: Optimizer) -> bool:
    """Return whether an optimiser may step its parameters one after another, for the same bits.

    torch's may, except L-BFGS, unless someone else's hooks expect to see one step of all parameters.
    """
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        shared._global_optimizer_pre_hooks,
        shared._global_optimizer_post_hooks,
    )
    return (
        f"{type(optimizer).__module__}.".startswith("torch.optim.")
        and not isinstance(optimizer, (LBFGS, SparseAdam))
        and [len(found) for found in hooks] == [1, 2, 0, 0]  # those of `OptimizerSteps`
    )


@torch.no_grad()
def step_into_gradients(optimizer: Optimizer, weights: Mapping[str, nn.Parameter], base: SparseBaseWeights) -> None:
    """Step parameters part by part, and leave w0 where their gradients were; these are None afterwards.

    Args:
        optimizer: one that `steps_each_alone`.
        weights: the parameters by name. Those whose gradient someone else has too, DTensors, and gradients not laid
            out as the weight are left to the optimiser's own step.
        base: their w0.
    """
    for part in _parts(weights, optimizer, base):
        base.take(part)
        with only(optimizer, part.values()):
            type(optimizer).step(optimizer)
        for name, weight in part.items():
            assert weight.grad is not None
            base.move_copy(name, local(weight.grad))
            weight.grad = None


def _parts(
    weights: Mapping[str, nn.Parameter], optimizer: Optimizer, base: SparseBaseWeights
) -> list[dict[str, nn.Parameter]]:
    stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    parts: list[dict[str, nn.Parameter]] = [{}]
    size = 0
    for name, weight in weights.items():
        if name in base.places and id(weight) in stepped and _is_free(weight):
            if size >= _PART:
                parts.append({})
                size = 0
            parts[-1][name] = weight
            size += weight.nbytes
    return parts if parts[0] else []


def _is_free(weight: nn.Parameter) -> bool:
    """Return whether nobody but the parameter has its gradient, or memory of it, and it is laid out as the weight.

    A bucket of DistributedDataParallel, a buffer that gradients are views of, or a gradient that someone holds would
    have w0 in it afterwards, and would write to w0 later.
    """
    gradient = weight.grad
    if gradient is None or gradient.layout != torch.strided or is_sharded(weight):
        return False
    alike = (gradient.shape, gradient.stride(), gradient.dtype) == (weight.shape, weight.stride(), weight.dtype)
    owns_memory = gradient.untyped_storage().nbytes() == gradient.nbytes
    return alike and owns_memory and _holders(gradient) == _holders_of_one_that_is_free()


def _holders(gradient: Any) -> tuple[int, int, int]:
    """Count what holds a tensor in Python, in C++, and its memory."""
    storage = gradient.untyped_storage()
    return sys.getrefcount(gradient), gradient._use_count(), torch._C._storage_Use_Count(storage._cdata)


@cache
def _holders_of_one_that_is_free() -> tuple[int, int, int]:
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    gradient = weight.grad
    return _holders(gradient)
