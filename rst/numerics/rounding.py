"""Comparing differences of half-precision weights without rounding them first, with the same result."""

from functools import lru_cache

import torch
from torch import Tensor

from rst.numerics.exactness import bits


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype that compares differences of weights exactly: float64 if it is included, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


@lru_cache(maxsize=64)  # a schedule has another threshold at every step
def comparison_bound(threshold: float, dtype: torch.dtype) -> float:
    """Return the largest number of `wide_dtype` that rounds to at most `threshold` in `dtype`.

    torch computes the difference of half-precision weights in float32 and rounds it. Comparing the unrounded difference
    with this bound gives the same result as comparing the rounded difference with the rounded threshold.
    """
    limit = torch.tensor(threshold, dtype=dtype)
    if dtype == wide_dtype(dtype):
        return float(limit)
    low, high = 0, int(torch.tensor(float("inf")).view(torch.int32)) + 1
    while high - low > 1:  # the bits of non-negative floats are ordered like the floats
        middle = (low + high) // 2
        rounded = torch.tensor(middle, dtype=torch.int32).view(torch.float32).to(dtype)
        low, high = (middle, high) if rounded <= limit else (low, middle)
    return float(torch.tensor(low, dtype=torch.int32).view(torch.float32))


def at_most(threshold: float, dtype: torch.dtype) -> float:
    """Return the largest number of `dtype` that is at most `threshold`; comparing changes with either is equivalent."""
    rounded = torch.tensor(threshold, dtype=dtype)
    if float(rounded) > threshold:
        rounded = torch.nextafter(rounded, torch.tensor(0.0, dtype=dtype))
    return float(rounded)


def tensor_at_most(threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """Do what `at_most` does for a number that stays on its device; both of shape ()."""
    rounded = threshold.to(dtype)
    one_lower = (bits(rounded) - 1).view(dtype)  # the bits of non-negative floats are ordered like the floats
    return torch.where(rounded > threshold, one_lower, rounded)
