"""The exact k-th largest magnitude over many tensors, in O(N) and without a sort (App. M's top-r % needs it).

The bits of non-negative floats are ordered like the floats, so a radix selection works: count the leading 16 bits of
every magnitude, find the bucket that holds the k-th, and repeat inside that bucket with the next 16 bits.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_DIGIT_BITS = 16
_BUCKETS = 1 << _DIGIT_BITS
_KEY_OF_FLOAT = {torch.float32: torch.int32, torch.float64: torch.int64}


def kth_largest(magnitudes: Callable[[], Iterable[Tensor]], k: int, dtype: torch.dtype) -> tuple[float, int]:
    """Find the k-th largest of all values, over several passes of the same tensors.

    Args:
        magnitudes: called once a pass; yields tensors of non-negative floats without NaN, of any shape.
        k: rank, at least 1 and at most the number of values.
        dtype: float32 or float64, wide enough to hold every value exactly.

    Returns:
        `(value, above)`: the k-th largest value, and how many values are strictly larger (fewer than k).
    """
    key_dtype = _KEY_OF_FLOAT[dtype]
    key_bits = 8 * dtype.itemsize
    prefix, remaining = 0, k
    for shift in range(key_bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = torch.zeros(_BUCKETS, dtype=torch.int64)
        for tensor in magnitudes():
            keys = tensor.reshape(-1).to(dtype).view(key_dtype)
            if shift + _DIGIT_BITS < key_bits:
                keys = keys[(keys >> (shift + _DIGIT_BITS)) == prefix]
            counts += torch.bincount((keys >> shift) & (_BUCKETS - 1), minlength=_BUCKETS).cpu()
        from_top = counts.flip(0).cumsum(0)
        bucket = int(torch.searchsorted(from_top, remaining))
        remaining -= int(from_top[bucket - 1]) if bucket else 0
        prefix = (prefix << _DIGIT_BITS) | (_BUCKETS - 1 - bucket)
    value = torch.tensor(prefix, dtype=key_dtype).view(dtype).item()
    return float(value), k - remaining
