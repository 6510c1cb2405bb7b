"""A delta on a live module: on in one scatter a parameter, all or nothing, and off again without subtracting anything.

Preparing does the checks and the arithmetic once: positions, new and old elements wait on the module's device. A swap
then reads and writes only the changed weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rst.delta import SparseDelta
from rst.errors import ParameterMismatchError, WrongBaseError
from rst.exactness import bits
from rst.naming import unwrap
from rst.parameter_delta import ParameterDelta
from rst.validation import validate


@dataclass(frozen=True)
class _Patch:
    """Elements of one tensor of a module to exchange: all of it if `positions` is None.

    `positions` count in the tensor's memory order, so that one scatter serves every memory format.
    """

    name: str
    owner: nn.Module
    attribute: str
    address: int
    positions: Tensor | None
    new: Tensor
    old: Tensor

    def memory(self) -> Tensor:
        """The tensor as it is now, as integers; 1-D in memory order where single positions are exchanged."""
        target: Tensor = getattr(self.owner, self.attribute).detach()
        if target.data_ptr() != self.address or target.device != self.new.device:
            raise ParameterMismatchError(
                f"{self.name}: moved or replaced since the delta was prepared; prepare it anew"
            )
        return bits(target) if self.positions is None else _memory_order(target)

    def holds(self, memory: Tensor) -> Tensor:
        """Whether the module still has the old elements: a bool tensor of shape ()."""
        found = memory if self.positions is None else memory.gather(0, self.positions)
        return (found == self.old).all()

    def write(self, memory: Tensor, elements: Tensor) -> None:
        """Write elements at the positions."""
        if self.positions is None:
            memory.copy_(elements)
        else:
            memory.scatter_(0, self.positions, elements)


class PreparedDelta:
    """A delta made ready for one module: `apply()` and `remove()` as often as you like, or `with prepared:`.

    >>> prepared = delta.prepare(model)
    >>> with prepared:
    ...     model(images)
    """

    def __init__(self, patches: Sequence[_Patch]) -> None:
        """Use `prepare`, which checks everything first."""
        self._patches = patches
        self._applied = False

    @property
    def applied(self) -> bool:
        """Whether the delta is on."""
        return self._applied

    @torch.no_grad()
    def apply(self) -> "PreparedDelta":
        """Exchange the base's elements for the tuned ones, O(nnz). Returns itself; on already, it does nothing.

        An exception between two writes puts back what was written.

        Raises:
            WrongBaseError: the module no longer has the base's elements at the changed positions (another delta is
                on, or it was trained). Nothing is written.
            ParameterMismatchError: a tensor was moved or replaced since `prepare`.
        """
        if self._applied:
            return self
        memories = [patch.memory() for patch in self._patches]
        for patch, held in zip(self._patches, self._held(memories), strict=True):
            if not held:
                raise WrongBaseError(
                    f"{patch.name}: no longer has the base's values where the delta changes it; "
                    "is another delta applied, or was the module trained?"
                )
        self._write(memories, "new", undo="old")
        self._applied = True
        return self

    @torch.no_grad()
    def remove(self) -> None:
        """Put back every overwritten element, bit for bit. Off already, it does nothing.

        Raises:
            ParameterMismatchError: a tensor was moved or replaced since `prepare`.
        """
        if self._applied:
            self._write([patch.memory() for patch in self._patches], "old", undo="new")
            self._applied = False

    def __enter__(self) -> "PreparedDelta":
        """Apply."""
        return self.apply()

    def __exit__(self, *_: object) -> None:
        """Remove."""
        self.remove()

    def _held(self, memories: Sequence[Tensor]) -> list[bool]:
        flags = [patch.holds(memory) for patch, memory in zip(self._patches, memories, strict=True)]
        return [bool(flag) for flag in torch.stack([flag.cpu() for flag in flags])] if flags else []

    def _write(self, memories: Sequence[Tensor], elements: str, *, undo: str) -> None:
        done = 0
        try:
            for patch, memory in zip(self._patches, memories, strict=True):
                done += 1
                patch.write(memory, getattr(patch, elements))
        except BaseException:
            for patch, memory in zip(self._patches[:done], memories, strict=False):
                patch.write(memory, getattr(patch, undo))
            raise


@torch.no_grad()
def prepare(module: nn.Module, delta: SparseDelta) -> PreparedDelta:
    """Check a delta against the module that holds its base weights, and make it ready to apply (Algorithm 2).

    Args:
        module: wrapped (torch.compile, DataParallel) or not, on any device; it is not changed.
        delta: with any operation.

    Raises:
        DeltaFormatError: a change is malformed.
        ParameterMismatchError: the module lacks a tensor, or has it in another shape or dtype.
        WrongBaseError: the weights at the changed positions are not those the delta was made from.
    """
    validate(delta.parameters, "delta")
    places = _places(unwrap(module))
    found = {name: _find(name, places, delta) for name in (*delta.parameters, *delta.dense)}
    patches = [_patch_change(name, *found[name], change) for name, change in delta.parameters.items()]
    patches += [_patch_whole(name, *found[name], tensor) for name, tensor in delta.dense.items()]
    return PreparedDelta(patches)


def _places(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where each parameter and buffer lives, by plain name."""
    places = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for attribute in (*owner._parameters, *owner._buffers):
            name = f"{path}.{attribute}" if path else attribute
            places[name.replace("_orig_mod.", "")] = (owner, attribute)
    return places


def _find(name: str, places: Mapping[str, tuple[nn.Module, str]], delta: SparseDelta) -> tuple[nn.Module, str]:
    for candidate in delta.names_of(name):
        if candidate in places:
            return places[candidate]
    raise ParameterMismatchError(f"{name}: in the delta, but the module has no such parameter or buffer")


def _patch_change(name: str, owner: nn.Module, attribute: str, change: ParameterDelta) -> _Patch:
    target = _checked(name, owner, attribute, change.shape, change.dtype)
    change = change.to(target.device)
    positions = _memory_positions(target, change.indices.long())
    old = _memory_order(target).gather(0, positions)
    origin = old.view(target.dtype)
    change.check_touched(name, origin)
    new = bits(change.tuned_values(origin))
    return _Patch(name, owner, attribute, target.data_ptr(), positions, new, old)


def _patch_whole(name: str, owner: nn.Module, attribute: str, tensor: Tensor) -> _Patch:
    target = _checked(name, owner, attribute, tuple(tensor.shape), tensor.dtype)
    new = bits(tensor.to(target.device))
    return _Patch(name, owner, attribute, target.data_ptr(), None, new, bits(target).clone())


def _checked(name: str, owner: nn.Module, attribute: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    target: Tensor = getattr(owner, attribute).detach()
    if tuple(target.shape) != shape or target.dtype != dtype:
        found = f"{target.dtype} {tuple(target.shape)}"
        raise ParameterMismatchError(f"{name}: the delta is for {dtype} {shape}, the module has {found}")
    return target


def _memory_order(target: Tensor) -> Tensor:
    """View the memory of a tensor as 1-D integers, first element to last, whatever its strides."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(target.shape, target.stride(), strict=True))
    return bits(target.as_strided((span if target.numel() else 0,), (1,)))


def _memory_positions(target: Tensor, positions: Tensor) -> Tensor:
    """Turn row-major positions into offsets in `_memory_order`."""
    if target.is_contiguous():
        return positions
    axes = torch.unravel_index(positions, target.shape)
    return sum((axis * stride for axis, stride in zip(axes, target.stride(), strict=True)), torch.zeros_like(positions))
