"""The top share of all changes between two checkpoints (App. M): exact, with one pair of tensors in memory."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from rst.checkpoints.read_ahead import read_ahead
from rst.numerics.exactness import RESIDUAL_DTYPES, bits
from rst.numerics.radix_select import keys_of, kth_smallest, number_of, rounds
from rst.numerics.rounding import wide_dtype
from rst.operations.extraction import Extraction, Progress, shifted

FAR = 2.0
"""Factor by which changed weights exceed the kept ones, or the share falls below the requested one, for a warning."""

_CHUNK = 1 << 22


def keep_top_share(
    extraction: Extraction, ratio: float, on_progress: Progress | None = None
) -> tuple[Extraction, Progress | None, int]:
    """Make an extraction keep the `ratio` of all its weights that changed most, fewer only if fewer changed.

    Of equal changes at the boundary, the first ones are kept, in the order of the names and of the elements. Tensors
    without residuals (float8, integers) are neither counted nor selected from. Everything is read twice more, or four
    times if float64 weights are included.

    Args:
        extraction: the comparison.
        ratio: the share, in (0, 1].
        on_progress: called after each tensor with bytes done and bytes in all, the extraction's own run included.

    Returns:
        The changed extraction, the progress of its run, and how many weights changed (0 if none is kept).

    Raises:
        ParameterMismatchError: shapes or dtypes differ.
    """
    names = [name for name in extraction.parameters() if has_residuals(extraction.outline(name))]
    wide = wide_dtype(*(extraction.outline(name).dtype for name in names))
    total = sum(extraction.outline(name).numel() for name in names)
    budget = round(ratio * total)
    if not budget:
        return replace(extraction, threshold=float("inf"), ties={}), on_progress, 0
    width = 8 * wide.itemsize
    passes = rounds(width)
    total_bytes = sum(map(extraction.nbytes, extraction.names)) if on_progress else 0
    done = changed = 0

    def keys() -> Iterator[Tensor]:
        nonlocal done, changed
        first_pass = done == 0
        for name in read_ahead(names, extraction.base, extraction.tuned):
            for change in changes(extraction, name, wide):
                changed += int(change.count_nonzero()) if first_pass else 0
                yield keys_of(change)
            done += extraction.nbytes(name)
            if on_progress:
                on_progress(done, total_bytes * (passes + 1))

    key, below, equal = kth_smallest(keys, total - budget + 1, width)
    boundary = number_of(key, wide)
    wanted = budget - (total - below - equal)
    ties = _first_ties(extraction, names, boundary, wanted) if boundary > 0 else {}
    after = shifted(on_progress, total_bytes * passes, total_bytes * (passes + 1))
    return replace(extraction, threshold=boundary, ties=ties), after, changed


def has_residuals(outline: Tensor) -> bool:
    """Return whether changes of such a tensor have comparable magnitudes: it is strided, with additive floats."""
    return outline.dtype in RESIDUAL_DTYPES and outline.layout == torch.strided and not outline.is_nested


def changes(extraction: Extraction, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
    """`|wt - w0|` of one parameter, rounded in its own dtype, 1-D in chunks; infinite where w0 was NaN and is no more.

    The parameter's memory is released afterwards.
    """
    base, tuned = extraction.pair(name)
    pieces = (torch.split(tensor.reshape(-1), _CHUNK) for tensor in (base, tuned))
    for origin, target in zip(*pieces, strict=True):
        change = (target - origin).abs_()
        if change.isnan().any():  # infinities that did not change
            change[bits(target) == bits(origin)] = 0.0
            change.nan_to_num_(nan=float("inf"), posinf=float("inf"))
        yield change.to(dtype)
    extraction.release(name)


def _first_ties(extraction: Extraction, names: list[str], boundary: float, wanted: int) -> dict[str, int]:
    """Return how many changes of each parameter that equal the boundary are among the first `wanted` of all."""
    ties = {}
    for name in names:
        if not wanted:
            break
        equal = sum(int((change == boundary).sum()) for change in changes(extraction, name, torch.float64))
        if equal:
            ties[name] = min(equal, wanted)
            wanted -= ties[name]
    return ties
