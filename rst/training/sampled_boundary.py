"""Where the top r % of all changes ends, estimated from a sample: what a training step can afford.

The share kept is that of the whole within a few percent: whatever r is, enough sampled changes lie above the boundary.
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

# This many sampled changes above the boundary: their count has a standard error of 2.7 %.
_ABOVE = 1400
# Fewer weights than this are all looked at.
_FEW = 1 << 20
# Consecutive steps begin their samples at other weights.
_SHIFT = 7919
# A coarser sample tells which changes cannot be the boundary, so that few are left to be ordered.
_COARSE = 32
_FINE = {(dtype, torch.device("cpu")) for dtype in (torch.float32, torch.float64)}


def sampled_boundary(
    tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], ratio: float, *, step: int
) -> Boundary | None:
    """Estimate where the top `ratio` of all changes ends, where that is worth it.

    Args:
        tuned: wt by name.
        base: w0 by name, same shapes, dtypes and devices.
        ratio: the share, in (0, 1].
        step: of the training; chooses which weights are looked at, the same ones in every process.

    Returns:
        The boundary, below 0 where every weight is kept; None where the exact one is to be found: in small models,
        where it costs as little, and in half precision, whose few distinct changes have many equals. What is on an
        accelerator is for `rst.training.boundary_on_device`.
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
    """Which of so many weights to look at: `(first, stride)`, other ones at every step."""
    stride = max(_no_divisor_of_sizes(int(total * ratio / _ABOVE)), 1)
    return step * _SHIFT % stride, stride


def _no_divisor_of_sizes(stride: int) -> int:
    """The next smaller stride that leads through every column of usual matrices: widths are rich in 2 and 3."""
    while stride > 4 and gcd(stride, 2 * 3) > 1:
        stride -= 1
    return stride


def _changes(first: int, stride: int, pair: Sequence[Tensor]) -> Floats:
    weight, origin = (tensor.numpy()[first::stride] for tensor in pair)
    with np.errstate(all="ignore"):  # infinities may meet
        change: Floats = np.abs(weight - origin)
    return change


def _with_above(parts: Sequence[Floats], above: int) -> float:
    """The number that has `above` others before it in descending order."""
    coarse = np.concatenate([part[::_COARSE] for part in parts])
    rank = coarse.size - 2 * above // _COARSE - 1
    least = np.partition(coarse, rank)[rank] if rank > 0 else -np.inf
    large = np.concatenate(on_all_cores(lambda part: part[part >= least], parts))
    if large.size <= above:  # the coarse sample misled
        large = np.concatenate(parts)
    place = large.size - above - 1
    return float(np.partition(large, place)[place])
