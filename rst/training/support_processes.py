"""Gradients of kept weights, averaged over data-parallel processes: communicates O(nnz) instead of O(N)."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rst.errors import ConfigError


def leave_out_of_ddp(model: nn.Module, inner: nn.Module, names: Iterable[str]) -> None:
    """Make DistributedDataParallel, if it wraps the model `inner`, skip the gradients of these parameters.

    Raises:
        ConfigError: `model` is already wrapped.
    """
    parallel = nn.parallel.DistributedDataParallel
    if any(isinstance(module, parallel) for module in model.modules()):
        raise ConfigError("create the trainer of a support before DistributedDataParallel wraps the model")
    parallel._set_params_and_buffers_to_ignore_for_model(inner, list(names))  # type: ignore[no-untyped-call]


def average_in_backward(values: Sequence[Tensor], also: Iterable[Tensor] = ()) -> None:
    """Average the gradients of these tensors over torch.distributed's processes at the end of each backward pass.

    As with DistributedDataParallel, this happens before scalers and clipping see the gradients, and after each
    micro-batch. Gradients averaged before are equal in all processes, so averaging them again changes nothing. The
    processes may form their group later, as Lightning's do.

    Args:
        values: all kept weights, leaf tensors in the same order in every process.
        also: other leaf tensors whose gradient shows that a backward pass is in progress.
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
    """Broadcast the positions of process 0 to all processes. Collective."""
    if _processes() == 1:
        return positions
    shared = [dict(positions)]
    torch.distributed.broadcast_object_list(shared)
    return shared[0]


def _processes() -> int:
    here = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if here else 1
