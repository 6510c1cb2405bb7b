"""What every change must satisfy before a single weight is touched; a delta may come from a stranger."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import get_args

import torch
from torch import Tensor

from rst.delta.joining import batches, join
from rst.delta.parameter_delta import Op, ParameterDelta, count_nans, stored_op
from rst.errors import DeltaFormatError
from rst.numerics.exactness import step_dtype

_COUNTABLE = 1 << 63
_OPS = get_args(Op)


def validate(parameters: Mapping[str, ParameterDelta], source: str) -> None:
    """Raise `DeltaFormatError`, naming `source` and the parameter, unless every change is well formed.

    Positions must be sorted, unique and inside the shape; values of the declared dtype, as many as positions, residuals
    finite and absolute values not NaN. What was found well formed is not looked at again until it is written to.
    """
    unchecked = {name: change for name, change in parameters.items() if not change.is_checked}
    for name, change in unchecked.items():
        _check_form(f"{source}: {name}", change)
    for batch in batches(unchecked):
        if not _contents_fit(list(batch.values())):
            for name, change in batch.items():
                _check_contents(f"{source}: {name}", change)
    for change in unchecked.values():
        change.mark_checked()


def _check_form(where: str, change: ParameterDelta) -> None:
    """Check what can be told without reading the arrays."""
    numel = change.numel
    if numel >= _COUNTABLE:
        raise DeltaFormatError(f"{where}: a parameter of shape {change.shape} has too many weights to count")
    _check_op(where, change)
    _check_positions(where, "indices", change.indices, numel)
    _check_positions(where, "exact_indices", change.exact_indices, numel)
    if change.exact_indices.numel() and change.exact_indices.dtype != change.indices.dtype:
        raise DeltaFormatError(f"{where}: exact_indices is {change.exact_indices.dtype}, not {change.indices.dtype}")
    _check_values(where, "values", change.values, step_dtype(change.dtype) if change.op == "step" else change.dtype)
    _check_values(where, "exact_values", change.overlay, change.dtype)
    _check_lengths(where, "values", change.values, change.indices)
    _check_lengths(where, "exact_values", change.overlay, change.exact_indices)


def _contents_fit(changes: Sequence[ParameterDelta]) -> bool:
    """Whether the arrays of all changes of a batch are in order; False also where they cannot be joined to tell."""
    sizes = [change.numel for change in changes]
    if sum(sizes) >= _COUNTABLE:
        return False
    joined = join(changes)
    try:
        _check_contents("", joined)
    except DeltaFormatError:
        return False
    return _inside(joined.indices, [change.nnz for change in changes], sizes) and _inside(
        joined.exact_indices, [change.exact_indices.numel() for change in changes], sizes
    )


def _inside(positions: Tensor, counts: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether each part's positions, in order and laid end to end, lie in its own parameter."""
    edges = zip(accumulate(counts), counts, accumulate(sizes), sizes, strict=True)
    filled = [(stop - count, stop - 1, end - size, end) for stop, count, end, size in edges if count]
    first, last, start, end = torch.tensor(filled, dtype=torch.int64, device=positions.device).reshape(-1, 4).unbind(1)
    return bool(((positions[first] >= start) & (positions[last] < end)).all())


def _check_contents(where: str, change: ParameterDelta) -> None:
    _check_order(where, "indices", change.indices, change.numel)
    _check_order(where, "exact_indices", change.exact_indices, change.numel)
    if change.op == "replace":
        _check_no_nan(where, "values", change.values)
    if change.op == "add":
        _check_residuals(where, change)


def _check_op(where: str, change: ParameterDelta) -> None:
    if change.op not in _OPS:
        raise DeltaFormatError(f"{where}: unknown op {change.op!r}; known are {list(_OPS)}")
    if stored_op(change.op, change.dtype) != change.op:
        raise DeltaFormatError(f"{where}: {change.dtype} has no residuals, yet {change.indices.numel()} are given")
    if change.op != "add" and change.exact_indices.numel():
        raise DeltaFormatError(f'{where}: {change.exact_indices.numel()} exact_indices with op "{change.op}"')


def _check_residuals(where: str, change: ParameterDelta) -> None:
    if not change.values.isfinite().all():
        bad = int((~change.values.isfinite()).sum())
        raise DeltaFormatError(f"{where}: {bad} of {change.values.numel()} residuals are NaN or infinite")
    _check_no_nan(where, "exact_values", change.overlay)
    if not _is_subset(change.exact_indices, change.indices):
        raise DeltaFormatError(f"{where}: exact_indices names positions that indices lacks")


def _check_positions(where: str, part: str, positions: Tensor, numel: int) -> None:
    if positions.ndim != 1 or positions.dtype not in (torch.int32, torch.int64):
        raise DeltaFormatError(f"{where}: {part} is {positions.dtype} {tuple(positions.shape)}, not 1-D int32 or int64")
    if positions.numel() > numel:
        raise DeltaFormatError(f"{where}: {positions.numel()} {part} for {numel} weights")


def _check_order(where: str, part: str, positions: Tensor, numel: int) -> None:
    if positions.numel() == 0:
        return
    if not (positions[1:] > positions[:-1]).all():
        raise DeltaFormatError(f"{where}: {part} is not sorted or repeats a position")
    first, last = int(positions[0]), int(positions[-1])
    if first < 0 or last >= numel:
        raise DeltaFormatError(f"{where}: {part} spans {first} to {last}, the parameter has {numel} weights")


def _check_values(where: str, part: str, values: Tensor, dtype: torch.dtype) -> None:
    if values.ndim != 1 or values.dtype != dtype:
        raise DeltaFormatError(f"{where}: {part} is {values.dtype} {tuple(values.shape)}, not 1-D {dtype}")


def _check_no_nan(where: str, part: str, values: Tensor) -> None:
    if nans := count_nans(values):
        raise DeltaFormatError(f"{where}: {part} has {nans} NaN")


def _check_lengths(where: str, part: str, values: Tensor, positions: Tensor) -> None:
    if values.numel() != positions.numel():
        raise DeltaFormatError(f"{where}: {values.numel()} {part} for {positions.numel()} positions")


def _is_subset(some: Tensor, all_of: Tensor) -> bool:
    if some.numel() == 0 or all_of.numel() == 0:
        return some.numel() == 0
    slots = torch.searchsorted(all_of, some).clamp_(max=all_of.numel() - 1)
    return bool((all_of[slots] == some).all())
