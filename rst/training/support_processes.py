"""Gradients of kept weights, averaged over the processes of data parallel training: O(nnz) travels, not O(N)."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rst.errors import ConfigError


def leave_out_of_ddp(model: nn.Module, inner: nn.Module, names: Iterable[str]) -> None:
    """Have DistributedDataParallel, should it wrap the model `inner`, reduce no gradient of these parameters.

    Raises:
        ConfigError: it has wrapped `model` already.
    """
    parallel = nn.parallel.DistributedDataParallel
    if any(isinstance(module, parallel) for module in model.modules()):
        raise ConfigError("create the trainer of a support before DistributedDataParallel wraps the model")
    parallel._set_params_and_buffers_to_ignore_for_model(inner, list(names))  # type: ignore[no-untyped-call]


def average_in_backward(values: Sequence[Tensor], also: Iterable[Tensor] = ()) -> None:
    """At the end of each backward pass average the gradients of these tensors over torch.distributed's processes.

    As DistributedDataParallel does: before scalers and clipping see them, and again after each micro-batch. What was
    averaged before is the same in all processes, so averaging it again changes nothing. The processes may form their
    group later, as Lightning's do.

    Args:
        values: all kept weights, each a leaf, in the same order everywhere.
        also: other leaves whose gradient tells that a backward pass is under way.
    """
    queued = False

    def average() -> None:
        nonlocal queued
        queued = False
        for dtype in {one.dtype: None for one in values}:
            alike = [one for one in values if one.dtype == dtype]
            gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in alike]
            flat = torch.cat(gradients) / _processes()
            torch.distributed.all_reduce(flat)
            for one, part in zip(alike, torch.split(flat, [one.numel() for one in alike]), strict=True):
                one.grad = part.clone()

    def queue(_: Tensor) -> None:
        nonlocal queued
        if not queued and _processes() > 1:
            queued = True
            torch.autograd.Variable._execution_engine.queue_callback(average)

    hook: Callable[[Tensor], None] = queue
    for leaf in (*values, *also):
        leaf.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]


def of_first_process(positions: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What process 0 of torch.distributed has, for all of them. Collective."""
    if _processes() == 1:
        return positions
    shared = [dict(positions)]
    torch.distributed.broadcast_object_list(shared)
    return shared[0]


def _processes() -> int:
    here = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if here else 1
