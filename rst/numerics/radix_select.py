"""The k-th smallest of more integers than fit in memory: a histogram of 16 bits at a time, highest first."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rst.numerics.rounding import wide_dtype

_DIGIT = 16
_DIGITS = 1 << _DIGIT
_MASK = _DIGITS - 1


def rounds(width: int) -> int:
    """Return how often `kth_smallest` reads keys of this width in bits."""
    return -(-width // _DIGIT)


def keys_of(changes: Tensor) -> Tensor:
    """Return integers in the order of non-negative float32 or float64 numbers: their bits, as int64 (n,)."""
    return changes.view(torch.int64 if changes.dtype == torch.float64 else torch.int32).long().cpu()


def number_of(key: int, *dtypes: torch.dtype) -> float:
    """Invert `keys_of`, for numbers in the widest of these dtypes."""
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
        keys: yields all of them, int64 of shape (n,) at a time, the same ones at every call.
        k: rank.
        width: width of the keys in bits.
        add_up: sums a histogram over all processes with keys.

    Returns:
        The key, the count of smaller keys, and the count of equal ones.
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
