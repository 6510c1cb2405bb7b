"""The conditions that every change must satisfy before any weight is written, because a delta may be untrusted."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from rst.delta.concatenation import MOST_AT_ONCE, JoinedChanges, Numbers, batches, numbers
from rst.delta.parameter_delta import Op, ParameterDelta, count_nans, stored_op
from rst.errors import DeltaFormatError
from rst.numerics.difference import infinity_bits
from rst.numerics.exactness import bits, step_dtype

_COUNTABLE = 1 << 63
_OPS = get_args(Op)


def validate(parameters: Mapping[str, ParameterDelta], source: str) -> None:
    """Raise `DeltaFormatError`, naming `source` and the parameter, unless every change is well formed.

    Positions must be sorted, unique and inside the shape. There must be as many values as positions, in the declared
    dtype; residuals must be finite, and absolute values must not be NaN. A change that was found well formed is not
    checked again until one of its arrays is written to.
    """
    unchecked = {name: change for name, change in parameters.items() if not change.is_checked}
    for name, change in unchecked.items():
        if (fault := _fault_of_form(change)) is not None:
            raise DeltaFormatError(fault, file=source, parameter=name)
    for batch in batches(unchecked):
        if not _contents_fit(JoinedChanges.of(list(batch.values()))):
            for name, change in batch.items():
                if (fault := _fault_of_contents(change)) is not None:
                    raise DeltaFormatError(fault, file=source, parameter=name)
    for change in unchecked.values():
        change.mark_checked()


def _fault_of_form(change: ParameterDelta) -> str | None:
    """Describe what is wrong as far as that shows without reading the arrays; None if nothing is."""
    numel, exact = change.numel, change.exact_indices.numel()
    if numel >= _COUNTABLE:
        return f"a parameter of shape {change.shape} has too many weights to count"
    if change.op not in _OPS:
        return f"unknown op {change.op!r}; known are {list(_OPS)}"
    if stored_op(change.op, change.dtype) != change.op:
        return f"{change.dtype} has no residuals, yet {change.indices.numel()} are given"
    if change.op != "add" and exact:
        return f'{exact} exact_indices with op "{change.op}"'
    if exact and change.exact_indices.dtype != change.indices.dtype:
        return f"exact_indices is {change.exact_indices.dtype}, not {change.indices.dtype}"
    stored = step_dtype(change.dtype) if change.op == "step" else change.dtype
    arrays = (
        ("indices", change.indices, "values", change.values, stored),
        ("exact_indices", change.exact_indices, "exact_values", change.overlay, change.dtype),
    )
    for part, positions, values_part, values, dtype in arrays:
        if positions.ndim != 1 or positions.dtype not in (torch.int32, torch.int64):
            return f"{part} is {positions.dtype} {tuple(positions.shape)}, not 1-D int32 or int64"
        if positions.numel() > numel:
            return f"{positions.numel()} {part} for {numel} weights"
        if values.ndim != 1 or values.dtype != dtype:
            return f"{values_part} is {values.dtype} {tuple(values.shape)}, not 1-D {dtype}"
        if values.numel() != positions.numel():
            return f"{values.numel()} {values_part} for {positions.numel()} positions"
    return None


def _contents_fit(changes: JoinedChanges) -> bool:
    """Return whether the arrays of all changes of a batch are valid; False also if they cannot be joined to tell."""
    return (
        sum(changes.sizes) < _COUNTABLE
        and _ascend_inside(numbers(changes.indices), changes.counts, changes.sizes)
        and _ascend_inside(numbers(changes.exact_indices), changes.exact_counts, changes.sizes)
        and (changes.op != "add" or _are_finite(changes.values))
        and not (changes.op == "replace" and _hold_nan(changes.values))
        and not _hold_nan(changes.exact_values)
        and changes.overlaid()[1]
    )


def _ascend_inside(positions: Numbers, counts: Sequence[int], sizes: Sequence[int]) -> bool:
    """Return whether the positions of each part, given concatenated, ascend and lie in the part's own parameter."""
    parts = zip(accumulate(counts), counts, sizes, strict=True)
    rows = [(stop - count, stop - 1, size) for stop, count, size in parts if count]
    if not rows:
        return True
    on_cpu = isinstance(positions, np.ndarray)
    table: Numbers = np.array(rows, dtype=np.int64) if on_cpu else torch.tensor(rows, device=positions.device)
    first, last, size = table.T
    ascend = positions[1:] > positions[:-1]
    ascend[last[:-1]] = True  # from one parameter to the next
    return bool(ascend.all() and (positions[first] >= 0).all() and (positions[last] < size).all())


def _are_finite(values: Tensor) -> bool:
    """Return whether no float is infinite or NaN, by the bits of its exponent, because numpy has no bfloat16."""
    exponent = infinity_bits(values.dtype)
    return exponent is not None and bool(((numbers(bits(values)) & exponent) != exponent).all())


def _hold_nan(values: Tensor) -> bool:
    return any(count_nans(part) for part in torch.split(values, MOST_AT_ONCE)) if values.numel() else False


def _fault_of_contents(change: ParameterDelta) -> str | None:
    """Describe what is wrong with the numbers in the arrays; None if nothing is."""
    for part, positions in (("indices", change.indices), ("exact_indices", change.exact_indices)):
        if not (positions[1:] > positions[:-1]).all():
            return f"{part} is not sorted or repeats a position"
        if positions.numel() and not 0 <= int(positions[0]) <= int(positions[-1]) < change.numel:
            first, last = int(positions[0]), int(positions[-1])
            return f"{part} spans {first} to {last}, the parameter has {change.numel} weights"
    if change.op == "add" and not change.values.isfinite().all():
        bad = int((~change.values.isfinite()).sum())
        return f"{bad} of {change.values.numel()} residuals are NaN or infinite"
    if change.op == "replace" and (nans := count_nans(change.values)):
        return f"values has {nans} NaN"
    if nans := count_nans(change.overlay):
        return f"exact_values has {nans} NaN"
    if not _is_subset(change.exact_indices, change.indices):
        return "exact_indices names positions that indices lacks"
    return None


def _is_subset(some: Tensor, all_of: Tensor) -> bool:
    if some.numel() == 0 or all_of.numel() == 0:
        return some.numel() == 0
    slots = torch.searchsorted(all_of, some).clamp_(max=all_of.numel() - 1)
    return bool((all_of[slots] == some).all())
