"""The boundary of the top r % of all changes, estimated from a sample, which a training step can afford.

The share kept is accurate within a few percent: whatever r is, enough sampled changes lie above the boundary.
The export finds the exact boundary (`rst.training.selection`).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import gcd

import numpy as np
import torch
from torch import Tensor

from rst.numerics.kth_largest import Floats
from rst.numerics.worker_pool import on_all_cores
from rst.training.selection import Boundary

# Number of sampled changes above the boundary: their count has a standard error of 2.7 %.
_ABOVE = 1400
# All weights are read if there are fewer than this.
_FEW = 1 << 20
# Offset between the samples of consecutive steps.
_SHIFT = 7919
# A coarser sample rules out most changes, so that few have to be sorted.
_COARSE = 32
_FINE = {(dtype, torch.device("cpu")) for dtype in (torch.float32, torch.float64)}


def sampled_boundary(
    tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], ratio: float, *, step: int
) -> Boundary | None:
    """Estimate the boundary of the top `ratio` of all changes, where that is worthwhile.

    Args:
        tuned: wt by name.
        base: w0 by name, same shapes, dtypes and devices.
        ratio: the share, in (0, 1].
        step: training step; determines which weights are sampled, the same ones in every process.

    Returns:
        The boundary, below 0 if every weight is kept. None if the exact boundary should be computed: for small models,
        where it costs as little, and in half precision, where many changes are equal. Weights on an accelerator are
        left to `rst.training.boundary_on_device`.
    """
    if ratio >= 1:
        return -1.0, []
    total = sum(weight.numel() for weight in tuned.values())
    first, stride = choose_sample(total, ratio, step)
    alike = {(weight.dtype, weight.device) for weight in tuned.values()}
    if total < _FEW or stride < 2 or len(alike) > 1 or alike.isdisjoint(_FINE):
        return None
    pairs = [(weight.detach().reshape(-1), base[name].reshape(-1)) for name, weight in tuned.items()]
    parts = on_all_cores(partial(_changes, first, stride), pairs)
    above = round(ratio * sum(part.size for part in parts))
    return _with_above(parts, above), []


def choose_sample(total: int, ratio: float, step: int) -> tuple[int, int]:
    """Choose the weights to read: `(first, stride)`, different ones at every step."""
    stride = max(_no_divisor_of_sizes(int(total * ratio / _ABOVE)), 1)
    return step * _SHIFT % stride, stride


def _no_divisor_of_sizes(stride: int) -> int:
    """Return the next smaller stride that visits every column of usual matrices, whose widths are rich in 2 and 3."""
    while stride > 4 and gcd(stride, 2 * 3) > 1:
        stride -= 1
    return stride


def _changes(first: int, stride: int, pair: Sequence[Tensor]) -> Floats:
    weight, origin = (tensor.numpy()[first::stride] for tensor in pair)
    with np.errstate(all="ignore"):  # infinities may meet
        change: Floats = np.abs(weight - origin)
    return change


def _with_above(parts: Sequence[Floats], above: int) -> float:
    """Return the number with `above` others before it in descending order."""
    coarse = np.concatenate([part[::_COARSE] for part in parts])
    rank = coarse.size - 2 * above // _COARSE - 1
    least = np.partition(coarse, rank)[rank] if rank > 0 else -np.inf
    large = np.concatenate(on_all_cores(lambda part: part[part >= least], parts))
    if large.size <= above:  # the coarse sample was misleading
        large = np.concatenate(parts)
    place = large.size - above - 1
    return float(np.partition(large, place)[place])
