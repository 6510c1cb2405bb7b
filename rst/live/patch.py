"""Elements of a live tensor that are exchanged for others and back.

On the CPU through numpy, whose indexing takes a third of torch's time for the few thousand elements of a parameter.
Tensors and numpy's arrays are indexed alike, so what is said of `Elements` holds on any device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.errors import ParameterMismatchError
from rst.numerics.exactness import bits

Elements = Any  # integers: a numpy array on the CPU, a tensor elsewhere
EVERYTHING: Any = ...


@dataclass(frozen=True)
class Spot:
    """A tensor of a module as it was found. While this is kept, nothing else gets the tensor's memory.

    Attributes:
        name: for messages.
        siblings: the parameters or the buffers of the module that has it.
        attribute: its name among them.
        tensor: the tensor, detached.
        address: where its elements were.
    """

    name: str
    siblings: Mapping[str, Tensor | None]
    attribute: str
    tensor: Tensor
    address: int

    @classmethod
    def find(cls, name: str, siblings: Mapping[str, Tensor | None], attribute: str) -> "Spot":
        """The tensor as it is now. Raises `ParameterMismatchError` if there is none, or none with values."""
        found = siblings[attribute]
        if found is None or found.is_meta:
            there = "None" if found is None else "a tensor without values, on the meta device,"
            raise ParameterMismatchError(f"in the delta, but the module has {there} there", parameter=name)
        return cls(name, siblings, attribute, found.detach(), found.data_ptr())

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles find the tensor of the module that was copied with them."""
        return Spot.find, (self.name, self.siblings, self.attribute)

    def check(self) -> None:
        """Raise `ParameterMismatchError` unless the module still has the tensor here."""
        now = self.siblings.get(self.attribute)
        if now is None or now.data_ptr() != self.address or now.device != self.tensor.device:
            raise ParameterMismatchError(
                "moved or replaced since the delta was prepared; prepare it anew", parameter=self.name
            )


@dataclass(frozen=True)
class Patch:
    """Elements of one tensor to exchange.

    Attributes:
        spot: the tensor.
        memory: its elements, in memory order if some are exchanged, in its shape if all.
        positions: which, or `EVERYTHING`.
        new: the tuned elements.
        old: the base's.
    """

    spot: Spot
    memory: Elements
    positions: Elements
    new: Elements
    old: Elements

    @classmethod
    def at(cls, spot: Spot, positions: Elements, new: Elements, old: Elements) -> "Patch":
        """Elements of the tensor at `spot`; `EVERYTHING` is in its shape, `positions` are in memory order."""
        memory = elements(spot.tensor) if positions is EVERYTHING else in_memory_order(spot.tensor)
        return cls(spot, memory, positions, new, old)

    def __reduce__(self) -> tuple[Any, ...]:
        """As the spot's: the memory is that of the copy."""
        return Patch.at, (self.spot, self.positions, self.new, self.old)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept besides the tensor itself."""
        positions = 0 if self.positions is EVERYTHING else self.positions.nbytes
        return int(positions + self.new.nbytes + self.old.nbytes)

    def read(self) -> Elements:
        """The elements there are now."""
        return self.memory[self.positions]

    def write(self, elements: Elements) -> None:
        """Replace them."""
        self.memory[self.positions] = elements
        if isinstance(self.memory, np.ndarray):  # autograd has not seen it, and would use the new weights as the old
            torch.autograd.graph.increment_version(self.spot.tensor)


@dataclass(frozen=True)
class PatchGroup:
    """Patches whose old elements lie end to end in `old`, so that one comparison serves them all."""

    patches: Sequence[Patch]
    old: Elements

    def stranger(self) -> str | None:
        """Name a tensor that has not the old elements, if any."""
        if _equal(end_to_end([patch.read() for patch in self.patches]), self.old):
            return None
        return next(patch.spot.name for patch in self.patches if not _equal(patch.read(), patch.old))


def elements(tensor: Tensor) -> Elements:
    """View a tensor's bits, to be read and written."""
    return bits(tensor).numpy() if tensor.device.type == "cpu" else bits(tensor)


def end_to_end(parts: Sequence[Elements]) -> Elements:
    """Concatenate; a single part is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(list(parts))


def in_memory_order(tensor: Tensor) -> Elements:
    """View the memory of a tensor in one dimension, first element to last, whatever its strides."""
    if tensor.is_contiguous():
        return elements(tensor).reshape(-1)
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return elements(tensor.as_strided((span if tensor.numel() else 0,), (1,)))


def memory_positions(tensor: Tensor, positions: Tensor) -> Tensor:
    """Turn row-major positions into positions `in_memory_order`, so that one scatter serves every memory format."""
    axes = torch.unravel_index(positions, tensor.shape)
    return sum((axis * stride for axis, stride in zip(axes, tensor.stride(), strict=True)), torch.zeros_like(positions))


def _equal(found: Elements, wanted: Elements) -> bool:
    return bool((found == wanted).all())
