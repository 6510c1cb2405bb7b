"""What every change must satisfy before a single weight is touched; a delta may come from a stranger."""

import torch
from torch import Tensor

from rst.errors import DeltaFormatError
from rst.exactness import RESIDUAL_DTYPES
from rst.parameter_delta import ParameterDelta


def validate(name: str, change: ParameterDelta, source: str) -> None:
    """Raise `DeltaFormatError`, naming `source` and the parameter, unless `change` is well formed.

    Positions must be sorted, unique and inside the shape; values finite, of the declared dtype, as many as positions.
    """
    where = f"{source}: {name}"
    _check_positions(where, "indices", change.indices, change.numel)
    _check_positions(where, "exact_indices", change.exact_indices, change.numel)
    _check_values(where, "values", change.values, change)
    _check_values(where, "exact_values", change.overlay, change)
    _check_lengths(where, "values", change.values, change.indices)
    _check_lengths(where, "exact_values", change.overlay, change.exact_indices)
    if change.dtype not in RESIDUAL_DTYPES:
        if change.indices.numel():
            raise DeltaFormatError(f"{where}: {change.dtype} has no residuals, yet {change.indices.numel()} are given")
        return
    if not change.values.isfinite().all():
        bad = int((~change.values.isfinite()).sum())
        raise DeltaFormatError(f"{where}: {bad} of {change.values.numel()} residuals are NaN or infinite")
    if change.overlay.isnan().any():
        raise DeltaFormatError(f"{where}: exact_values has {int(change.overlay.isnan().sum())} NaN")
    if not _is_subset(change.exact_indices, change.indices):
        raise DeltaFormatError(f"{where}: exact_indices names positions that indices lacks")


def _check_positions(where: str, part: str, positions: Tensor, numel: int) -> None:
    if positions.ndim != 1 or positions.is_floating_point() or positions.element_size() not in (4, 8):
        raise DeltaFormatError(f"{where}: {part} is {positions.dtype} {tuple(positions.shape)}, not 1-D int32 or int64")
    if positions.numel() == 0:
        return
    if positions.numel() > numel:
        raise DeltaFormatError(f"{where}: {positions.numel()} {part} for {numel} weights")
    first, last = int(positions.min()), int(positions.max())
    if first < 0 or last >= numel:
        raise DeltaFormatError(f"{where}: {part} spans {first} to {last}, the parameter has {numel} weights")
    if not (positions[1:] > positions[:-1]).all():
        raise DeltaFormatError(f"{where}: {part} is not sorted or repeats a position")


def _check_values(where: str, part: str, values: Tensor, change: ParameterDelta) -> None:
    if values.ndim != 1 or values.dtype != change.dtype:
        raise DeltaFormatError(f"{where}: {part} is {values.dtype} {tuple(values.shape)}, not 1-D {change.dtype}")


def _check_lengths(where: str, part: str, values: Tensor, positions: Tensor) -> None:
    if values.numel() != positions.numel():
        raise DeltaFormatError(f"{where}: {values.numel()} {part} for {positions.numel()} positions")


def _is_subset(some: Tensor, all_of: Tensor) -> bool:
    if some.numel() == 0 or all_of.numel() == 0:
        return some.numel() == 0
    slots = torch.searchsorted(all_of, some).clamp_(max=all_of.numel() - 1)
    return bool((all_of[slots] == some).all())
