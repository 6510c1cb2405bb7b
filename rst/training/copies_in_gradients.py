"""A step part by part, after which each copy of w0 lies in the memory of a gradient that the step has used.

The copy that a selection needs so takes no memory of its own, beyond one part's.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.optim import optimizer as shared

from rst.shards.blocks import local
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
        weights: the parameters by name. Those whose gradient's memory is not theirs alone, or not laid out as the
            weight, are left to the optimiser's own step.
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
    gradients = {
        id(weight): local(weight.grad)
        for group in optimizer.param_groups
        for weight in group["params"]
        if weight.grad is not None and weight.grad.layout == torch.strided
    }
    owners = Counter(gradient.data_ptr() for gradient in gradients.values())
    parts: list[dict[str, nn.Parameter]] = [{}]
    size = 0
    for name, weight in weights.items():
        gradient = gradients.get(id(weight))
        if name not in base.places or gradient is None or owners[gradient.data_ptr()] > 1:
            continue
        if _can_hold(gradient, local(weight)):
            if size >= _PART:
                parts.append({})
                size = 0
            parts[-1][name] = weight
            size += gradient.nbytes
    return parts if parts[0] else []


def _can_hold(gradient: Tensor, weight: Tensor) -> bool:
    """Return whether a gradient is no view into other memory, and laid out as the weight."""
    alike = (gradient.shape, gradient.stride(), gradient.dtype) == (weight.shape, weight.stride(), weight.dtype)
    return alike and gradient.untyped_storage().nbytes() == gradient.nbytes
