"""A delta on a live module: add it in place, all or nothing, and take it off again without subtracting anything."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rst.delta import SparseDelta
from rst.errors import ParameterMismatchError, WrongBaseError
from rst.exactness import bits
from rst.fingerprint import digest
from rst.naming import unwrap
from rst.parameter_delta import ParameterDelta, gather
from rst.validation import validate


@dataclass(frozen=True)
class _Write:
    """New elements for some positions of one tensor (all of them if `positions` is None), and the old ones."""

    target: Tensor
    positions: Tensor | None
    new: Tensor
    old: Tensor


class AppliedDelta:
    """A delta that is in force on a module. Also a context manager that removes it at the end.

    >>> with delta.apply(model):
    ...     model(images)
    """

    def __init__(self, writes: list[_Write]) -> None:
        """Use `apply`, which checks everything first."""
        self._writes = writes

    def remove(self) -> None:
        """Put back every overwritten element, bit for bit. A second call does nothing."""
        _write_all([_Write(write.target, write.positions, write.old, write.new) for write in reversed(self._writes)])
        self._writes = []

    def __enter__(self) -> "AppliedDelta":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the delta."""
        self.remove()


@torch.no_grad()
def apply(module: nn.Module, delta: SparseDelta) -> AppliedDelta:
    """Turn the base weights of `module` into the tuned ones, in place: O(nnz) reads and writes (Algorithm 2).

    Every name, shape, dtype and position, and the base's values at the changed positions, are checked before the first
    write; an exception between writes puts back what was written.

    Args:
        module: holds the base weights, wrapped (torch.compile, DataParallel) or not, on any device.
        delta: its residuals.

    Returns:
        A handle whose `remove()` restores every byte.

    Raises:
        DeltaFormatError: a change is malformed.
        ParameterMismatchError: the module lacks a tensor, or has it in another shape or dtype.
        WrongBaseError: the weights at the changed positions are not those the delta was made from.
    """
    live = _named_tensors(unwrap(module))
    targets = {name: _find(name, live, delta) for name in (*delta.parameters, *delta.dense)}
    writes = [_plan_change(name, targets[name], change) for name, change in delta.parameters.items()]
    writes += [_plan_whole(name, targets[name], tensor) for name, tensor in delta.dense.items()]
    _write_all(writes)
    return AppliedDelta(writes)


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    named = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return {name.replace("_orig_mod.", ""): tensor.detach() for name, tensor in named.items()}


def _find(name: str, live: Mapping[str, Tensor], delta: SparseDelta) -> Tensor:
    for candidate in delta.names_of(name):
        if candidate in live:
            return live[candidate]
    raise ParameterMismatchError(f"{name}: in the delta, but the module has no such parameter or buffer")


def _plan_change(name: str, target: Tensor, change: ParameterDelta) -> _Write:
    validate(name, change, "delta")
    _check_like(name, target, change.shape, change.dtype)
    change = change.to(target.device)
    positions = change.indices.long()
    old = gather(target.reshape(-1), positions)
    check_touched(name, change, old)
    return _Write(target, positions, change.tuned_values(old), old)


def _plan_whole(name: str, target: Tensor, tensor: Tensor) -> _Write:
    _check_like(name, target, tuple(tensor.shape), tensor.dtype)
    return _Write(target, None, tensor.to(target.device), target.clone())


def _check_like(name: str, target: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(target.shape) != shape or target.dtype != dtype:
        found = f"{target.dtype} {tuple(target.shape)}"
        raise ParameterMismatchError(f"{name}: the delta is for {dtype} {shape}, the module has {found}")


def check_touched(name: str, change: ParameterDelta, origin: Tensor) -> None:
    """Raise `WrongBaseError` unless `origin`, the base at the changed positions, has the recorded digest."""
    if change.base is not None and digest(origin) != change.base.touched:
        raise WrongBaseError(
            f"{name}: the base's values at the {change.nnz} changed positions are not those the delta was made from"
        )


def _write_all(writes: list[_Write]) -> None:
    done: list[_Write] = []
    try:
        for write in writes:
            done.append(write)
            _put(write.target, write.positions, write.new)
    except BaseException:
        for write in reversed(done):
            _put(write.target, write.positions, write.old)
        raise


@torch.no_grad()
def _put(target: Tensor, positions: Tensor | None, values: Tensor) -> None:
    if positions is None:
        target.copy_(values)
        return
    raw, new = bits(target), bits(values)
    if raw.is_contiguous():
        raw.view(-1).index_copy_(0, positions, new)
    else:
        raw.index_put_(torch.unravel_index(positions, target.shape), new)
