"""The k-th smallest of integers that are too many to hold: a histogram of 16 bits at a time, highest first."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rst.numerics.rounding import wide_dtype

_DIGIT = 16
_DIGITS = 1 << _DIGIT
_MASK = _DIGITS - 1


def rounds(width: int) -> int:
    """How often `kth_smallest` looks at keys of so many bits."""
    return -(-width // _DIGIT)


def keys_of(changes: Tensor) -> Tensor:
    """Integers in the order of numbers that are not negative, float32 or float64: their bits, as int64 (n,)."""
    return changes.view(torch.int64 if changes.dtype == torch.float64 else torch.int32).long().cpu()


def number_of(key: int, *dtypes: torch.dtype) -> float:
    """Invert `keys_of`, for numbers in the dtype that is wide enough for all of these."""
    wide = wide_dtype(*dtypes)
    return float(torch.tensor(key, dtype=torch.int64 if wide == torch.float64 else torch.int32).view(wide))


def kth_smallest(
    keys: Callable[[], Iterable[Tensor]],
    k: int,
    width: int,
    add_up: Callable[[Tensor], Tensor] = lambda histogram: histogram,
) -> tuple[int, int, int]:
    """Find the k-th smallest, k >= 1, of non-negative keys of at most `width` bits.

    Args:
        keys: gives all of them, int64 of shape (n,) at a time, the same ones at every call.
        k: rank.
        width: in bits.
        add_up: sums a histogram over the processes that have keys.

    Returns:
        The key, how many are smaller, and how many are equal.
    """
    prefix = below = equal = 0
    top = rounds(width) - 1
    for shift in range(top * _DIGIT, -1, -_DIGIT):
        histogram = torch.zeros(_DIGITS, dtype=torch.int64)
        for part in keys():
            fitting = part if shift == top * _DIGIT else part[part >> (shift + _DIGIT) == prefix]
            histogram += torch.bincount(fitting >> shift & _MASK, minlength=_DIGITS)
        histogram = add_up(histogram)
        up_to = histogram.cumsum(0)
        digit = int(torch.searchsorted(up_to, k - below))
        equal = int(histogram[digit])
        below += int(up_to[digit]) - equal
        prefix = prefix << _DIGIT | digit
    return prefix, below, equal
