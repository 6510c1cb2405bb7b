"""Communication between the processes of a sharded model: sums, bytes for the first process, and failures."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rst.errors import RSTError

Result = TypeVar("Result")


def is_first() -> bool:
    """Return whether this is the process that gathers."""
    return dist.get_rank() == 0


def add_up(numbers: Tensor, device: torch.device) -> Tensor:
    """Sum a tensor of integers over all processes, on the CPU; `device` is one that the process group supports."""
    shared = numbers.to(device, copy=True)
    dist.all_reduce(shared)
    return shared.cpu()


def tell_all(what: Result) -> list[Result]:
    """Gather a value from each process, in the order of their ranks."""
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, what)
    return told


def together(work: Callable[[], Result], device: torch.device) -> Result:
    """Do `work`; if it fails in one process, raise in all, so that none waits for another.

    Raises:
        RSTError: the failure of the process of lowest rank that failed.
        OSError: likewise.
    """
    result: Any = None
    failure: RSTError | OSError | None = None
    try:
        result = work()
    except (RSTError, OSError) as error:
        failure = error
    if not add_up(torch.tensor([int(failure is not None)]), device).item():
        return result  # type: ignore[no-any-return]
    first = next(told for told in tell_all(failure) if told is not None)
    raise first from failure


def gather_bytes(raw: Tensor, device: torch.device) -> list[Tensor] | None:
    """Gather the bytes of all processes in the first.

    Args:
        raw: uint8 of shape (n,); n may differ between processes.
        device: a device that the process group supports.

    Returns:
        In the first process, one tensor per process, on the CPU; elsewhere None.
    """
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    sizes[dist.get_rank()] = raw.numel()
    lengths: Sequence[int] = add_up(sizes, device).tolist()
    if not is_first():
        if raw.numel():
            dist.send(raw.to(device), 0)
        return None
    return [raw.cpu(), *(_receive(sender, length, device) for sender, length in enumerate(lengths) if sender)]


def _receive(sender: int, length: int, device: torch.device) -> Tensor:
    buffer = torch.empty(length, dtype=torch.uint8, device=device)
    if length:
        dist.recv(buffer, sender)
    return buffer.cpu()
