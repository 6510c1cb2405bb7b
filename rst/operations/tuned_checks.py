"""Checking, from the headers, that tuned weights have the shapes and dtypes of their base, with advice if not."""

from rst.checkpoints.checkpoint import Checkpoint
from rst.delta.parameter_delta import is_judged
from rst.errors import ParameterMismatchError
from rst.numerics.exactness import RESIDUAL_DTYPES
from rst.operations.extraction import Extraction


def check_forms(extraction: Extraction, base: Checkpoint, *, may_cast: bool) -> None:
    """Compare the tensors that are not stored whole, before anything is read; those that no delta holds may differ.

    Args:
        extraction: the plan of the comparison.
        base: its base.
        may_cast: whether the user could request a cast to the base's dtype, and has not.

    Raises:
        ParameterMismatchError: shapes or dtypes differ.
    """
    compared = [name for name in extraction.names if name not in extraction.whole and name not in extraction.left]
    other = []
    for name in compared:
        before, after = base.outline(name), extraction.outline(name)
        if is_judged(before) and is_judged(after) and (before.shape, before.dtype) != (after.shape, after.dtype):
            other.append(name)
    if not other:
        return
    first, more = other[0], len(other) - 1
    before, after = base.outline(first), extraction.outline(first)
    advice = "modules_to_save (--modules-to-save) stores it whole, exclude_modules (--exclude) keeps the base's"
    if may_cast and before.shape == after.shape and {before.dtype, after.dtype} <= {*RESIDUAL_DTYPES}:
        word = str(before.dtype).removeprefix("torch.")
        advice = f"dtype={before.dtype} (--dtype {word}) casts the tuned weights first, which rounds them; or {advice}"
    raise ParameterMismatchError(
        f"{after.dtype} {tuple(after.shape)} does not fit the base's {before.dtype} {tuple(before.shape)}"
        f"{f', and {more} more differ' if more else ''}; {advice}",
        file=extraction.source,
        parameter=first,
    )
