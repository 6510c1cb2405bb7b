"""Exchanging elements of a live tensor for others, and back.

On the CPU, numpy does this, because its indexing takes a third of torch's time for the few thousand elements of a
parameter. Tensors and numpy's arrays are indexed in the same way, so code for `Elements` works on any device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rst.delta.parameter_delta import check_own_memory
from rst.errors import ParameterMismatchError
from rst.live.swap_version import SwapVersion
from rst.numerics.exactness import bits

Elements = Any  # integers: a numpy array on the CPU, a tensor elsewhere
EVERYTHING: Any = ...


class Place(NamedTuple):
    """The place of a tensor in a module.

    Attributes:
        owner: the module's parameters or buffers, `module._parameters` or `module._buffers`.
        attribute: the tensor's name in `owner`.
        is_buffer: whether `owner` holds buffers.
    """

    owner: Mapping[str, Tensor | None]
    attribute: str
    is_buffer: bool

    @property
    def tensor(self) -> Tensor | None:
        """The tensor that is there now."""
        return self.owner.get(self.attribute)


@dataclass(frozen=True)
class LiveTensor:
    """A parameter or buffer as a module had it. As long as this object exists, the tensor's memory is not reused.

    Attributes:
        name: the tensor's name, for messages.
        place: the tensor's place in the module.
        tensor: the tensor, detached.
        form: its address and layout in memory, which every swap compares.
    """

    name: str
    place: Place
    tensor: Tensor
    form: tuple[Any, ...]

    @classmethod
    def find(cls, name: str, place: Place) -> "LiveTensor":
        """Return the tensor as it is now.

        Raises:
            ParameterMismatchError: there is no tensor, or its elements cannot be written one by one.
        """
        found = place.tensor
        if found is None or found.is_meta:
            there = "None" if found is None else "a tensor without values, on the meta device,"
            raise ParameterMismatchError(f"in the delta, but the module has {there} there", parameter=name)
        check_own_memory(name, found)
        form = found.data_ptr(), found.stride(), found.dtype, found.device, found.shape
        return cls(name, place, found.detach(), form)

    def __reduce__(self) -> tuple[Any, ...]:
        """Make copies and pickles find the tensor of the module that was copied with them."""
        return LiveTensor.find, (self.name, self.place)

    @property
    def is_current(self) -> bool:
        """Return whether the module still has the tensor in this memory, with the same layout and dtype."""
        now = self.place.owner.get(self.place.attribute)
        if now is None:
            return False
        return (now.data_ptr(), now.stride(), now.dtype, now.device, now.shape) == self.form


@dataclass(frozen=True, eq=False)
class Patch:
    """The elements of one tensor to exchange.

    Attributes:
        live: the tensor.
        memory: the tensor's elements: in memory order if some are exchanged, in the tensor's shape if all are.
        positions: the positions to exchange, or `EVERYTHING`.
        new: the tuned elements.
        old: the base's elements.
        swap_version: the count of writes that autograd sees.
    """

    live: LiveTensor
    memory: Elements
    positions: Elements
    new: Elements
    old: Elements
    swap_version: SwapVersion = field(default_factory=SwapVersion)

    @classmethod
    def at(cls, live: LiveTensor, positions: Elements, new: Elements, old: Elements) -> "Patch":
        """Exchange elements at row-major `positions`, or all. Elements on another device are moved to the tensor's."""
        tensor = live.tensor
        new, old = (elements(torch.as_tensor(part).to(tensor.device)) for part in (new, old))
        if positions is EVERYTHING:
            return cls(live, elements(tensor), positions, new, old)
        row_major = elements(torch.as_tensor(positions).to(tensor.device))
        return cls(live, in_memory_order(tensor), memory_positions(tensor, row_major), new, old)

    def __reduce__(self) -> tuple[Any, ...]:
        """Use the memory of the copied tensor, whose layout may differ."""
        return Patch.at, (self.live, self._row_major(), self.new, self.old)

    def found_again(self) -> "Patch":
        """Return the same exchange for the tensor that the module has now: moved, replaced, or cast like the elements.

        Raises:
            ParameterMismatchError: the module no longer has the tensor, or has it in another shape or kind of dtype.
        """
        if self.live.is_current:
            return self
        then = self.live.tensor
        live = LiveTensor.find(self.live.name, self.live.place)
        now = live.tensor
        castable = now.dtype == then.dtype or (now.is_floating_point() and then.is_floating_point())
        if now.shape != then.shape or not castable:
            raise ParameterMismatchError(
                f"the delta was prepared for {then.dtype} {tuple(then.shape)}, "
                f"but the module has {now.dtype} {tuple(now.shape)} now",
                parameter=live.name,
            )
        new, old = (bits(torch.as_tensor(part).view(then.dtype).to(now.dtype)) for part in (self.new, self.old))
        return Patch.at(live, self._row_major(), new, old)

    @property
    def nbytes(self) -> int:
        """The bytes of what is kept in addition to the tensor itself."""
        positions = 0 if self.positions is EVERYTHING else self.positions.nbytes
        return int(positions + self.new.nbytes + self.old.nbytes)

    @property
    def changed(self) -> int:
        """The number of new elements."""
        return int((self.new != self.old).sum())

    def read(self) -> Elements:
        """Return the current elements."""
        return self.memory[self.positions]

    def read_into(self, out: Elements) -> None:
        """Copy the current elements at the positions into other memory."""
        if isinstance(out, np.ndarray):
            self.memory.take(self.positions, out=out, mode="clip")  # positions are inside; else numpy buffers
        else:
            out[:] = self.read()

    def has(self, elements: Elements) -> bool:
        """Return whether the current elements are these."""
        return _equal(self.read(), elements)

    def write(self, elements: Elements) -> None:
        """Write these elements. Autograd does not see it (`CountedSwap`)."""
        self.memory[self.positions] = elements

    def _row_major(self) -> Elements:
        tensor, positions = self.live.tensor, self.positions
        if positions is EVERYTHING or tensor.is_contiguous():
            return positions
        row_major = torch.arange(tensor.numel(), device=tensor.device)
        places = torch.as_tensor(memory_positions(tensor, row_major))
        inverse = torch.zeros(int(places.max()) + 1, dtype=torch.int64, device=tensor.device)
        inverse[places] = row_major
        return inverse[torch.as_tensor(positions)]


@dataclass(frozen=True)
class PatchGroup:
    """Patches of one device and dtype. Their elements are concatenated, so that one comparison serves them all."""

    patches: Sequence[Patch]
    new: Elements
    old: Elements

    def lacking(self, which: Literal["new", "old"]) -> list[Patch]:
        """Return the patches whose tensors do not have these elements now."""
        if _equal(read_all([(patch.memory, patch.positions) for patch in self.patches]), getattr(self, which)):
            return []
        return [patch for patch in self.patches if not patch.has(getattr(patch, which))]

    def exchange(self, which: Literal["new", "old"], found: list[tuple[Patch, Elements]]) -> bool:
        """Write the old or the new elements, and return whether the others were there before.

        Args:
            which: which elements to write.
            found: a list that receives each patch that is written to, with the elements that it had.
        """
        others = self.old if which == "new" else self.new
        if len(self.patches) == 1 and self.patches[0].positions is EVERYTHING:  # without a copy of a whole tensor
            if not self.patches[0].has(others):
                return False
            found.append((self.patches[0], others))
            self.patches[0].write(getattr(self, which))
            return True
        before, start = others.copy() if isinstance(others, np.ndarray) else others.clone(), 0
        for patch in self.patches:
            end = start + len(patch.new)
            patch.read_into(before[start:end])
            found.append((patch, before[start:end]))
            patch.write(patch.new if which == "new" else patch.old)
            start = end
        return _equal(before, others)

    def found_again(self) -> Sequence["PatchGroup"]:
        """Return the same patches for the current tensors; in several groups if some have moved between devices."""
        if all(patch.live.is_current for patch in self.patches):
            return [self]
        patches = [patch.found_again() for patch in self.patches]
        return [PatchGroup([patch], patch.new, patch.old) for patch in patches]


def elements(tensor: Tensor) -> Elements:
    """View a tensor's bits, to read and write them."""
    return bits(tensor).numpy() if tensor.device.type == "cpu" else bits(tensor)


def in_memory_order(tensor: Tensor) -> Elements:
    """View the memory of a tensor in one dimension, from the first element to the last, whatever its strides."""
    if tensor.is_contiguous():
        flat = tensor.view(-1)
    else:
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        flat = tensor.as_strided((span if tensor.numel() else 0,), (1,))
    return bits(flat).numpy() if tensor.device.type == "cpu" else bits(flat)


def memory_positions(tensor: Tensor, positions: Elements) -> Elements:
    """Convert row-major positions to positions `in_memory_order`, so that one scatter serves every memory format."""
    if tensor.is_contiguous():
        return positions
    axes = torch.unravel_index(torch.as_tensor(positions), tensor.shape)
    zero = torch.zeros(len(positions), dtype=torch.int64, device=tensor.device)
    return elements(sum((axis * stride for axis, stride in zip(axes, tensor.stride(), strict=True)), zero))


def read_all(places: Sequence[tuple[Elements, Elements]]) -> Elements:
    """Read and concatenate the elements of several memories, each at its positions, which must be inside."""
    first, positions = places[0]
    if len(places) == 1:
        return first[positions]
    if not isinstance(first, np.ndarray):
        return torch.cat([memory[where] for memory, where in places])
    found, start = np.empty(sum(len(where) for _, where in places), first.dtype), 0
    for memory, where in places:
        end = start + len(where)
        memory.take(where, out=found[start:end], mode="clip")
        start = end
    return found


def _equal(found: Elements, wanted: Elements) -> bool:
    return bool((found == wanted).all())
