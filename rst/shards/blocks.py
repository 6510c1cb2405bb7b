"""This process' part of a sharded tensor (a DTensor), and its place in the whole."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rst.errors import ParameterMismatchError


@dataclass(frozen=True)
class Block:
    """An N-D box of a tensor: the part of one process.

    Attributes:
        shape: the shape of the whole tensor.
        offset: coordinates of its first element in the tensor.
        size: the shape of the box.
    """

    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Return the number of elements of the box."""
        return math.prod(self.size)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Return the box as an index of the whole tensor."""
        return tuple(slice(start, start + size) for start, size in zip(self.offset, self.size, strict=True))

    def to_global(self, positions: Tensor) -> Tensor:
        """Convert flat row-major positions in the box, int64 of shape (n,), to positions in the whole tensor."""
        if self.size[1:] == self.shape[1:]:  # whole rows, so one run of memory
            return positions + self.offset[0] * math.prod(self.shape[1:]) if self.shape else positions
        axes = torch.unravel_index(positions, self.size)
        flat = torch.zeros_like(positions)
        for axis, start, length in zip(axes, self.offset, self.shape, strict=True):
            flat = flat * length + axis + start
        return flat

    def cut(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sorted flat positions in the whole tensor, int64 of shape (n,), that lie in the box.

        Returns:
            Their indices in `positions`, and their flat positions in the box, both int64 of shape (m,).
        """
        if self.size[1:] == self.shape[1:]:  # whole rows, so one run of memory
            row = math.prod(self.shape[1:])
            start = self.offset[0] * row if self.shape else 0
            ends = torch.searchsorted(positions, torch.tensor([start, start + self.numel]))
            chosen = torch.arange(int(ends[0]), int(ends[1]))
            return chosen, positions[chosen] - start
        axes = torch.stack(torch.unravel_index(positions, self.shape)) - torch.tensor(self.offset)[:, None]
        inside = ((axes >= 0) & (axes < torch.tensor(self.size)[:, None])).all(0)
        flat = torch.zeros_like(positions)
        for axis, length in zip(axes, self.size, strict=True):
            flat = flat * length + axis
        return inside.nonzero().squeeze(1), flat[inside]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, by its interface, because importing DTensor takes a second."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return this process' part of a tensor, detached, in the same memory: all of it, unless it is a DTensor."""
    part: Any = tensor
    return (part.to_local() if is_sharded(tensor) else part).detach()  # type: ignore[no-any-return]


def locals_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `local` of each tensor."""
    return {name: local(tensor) for name, tensor in tensors.items()}


def block_of(name: str, tensor: Tensor) -> Block:
    """Return the place of `local(tensor)` in the whole.

    Raises:
        ParameterMismatchError: the tensor is a DTensor with a pending reduction, or is split unevenly.
    """
    shape = tuple(tensor.shape)
    if not is_sharded(tensor):
        return Block(shape, (0,) * len(shape), shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    part: Any = tensor
    if any(placement.is_partial() for placement in part.placements):
        raise ParameterMismatchError(f"placed as {part.placements}; a partial sum has no weights yet", parameter=name)
    size, offset = compute_local_shape_and_global_offset(shape, part.device_mesh, part.placements)
    found = tuple(local(tensor).shape)
    if tuple(size) != found:
        raise ParameterMismatchError(
            f"placed as {part.placements}, this process has {found}, not {tuple(size)}", parameter=name
        )
    return Block(shape, tuple(offset), found)


def like(tensor: Tensor, part: Tensor) -> Tensor:
    """Return a DTensor placed as `tensor` with `part` in this process, or `part` itself if `tensor` is not one."""
    if not is_sharded(tensor):
        return part
    from torch.distributed.tensor import DTensor

    whole: Any = tensor
    return DTensor.from_local(
        part, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
