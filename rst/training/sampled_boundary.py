"""Where the top r % of all changes ends, estimated from a sample: what a training step can afford.

The share kept is that of the whole within a few percent: whatever r is, enough sampled changes lie above the boundary.
The export finds the exact boundary (`rst.training.selection`).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.numerics.kth_largest import Floats
from rst.numerics.worker_pool import on_all_cores

# This many sampled changes above the boundary: their count has a standard error of 2.5 %.
_ABOVE = 1600
# Consecutive steps begin their samples at other weights.
_SHIFT = 7919
# A coarser sample tells which changes cannot be the boundary, so that few are left to be ordered.
_COARSE = 32


def sampled_boundary(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], ratio: float, step: int) -> Tensor:
    """Estimate the change that a share `ratio` of all changes exceeds, without waiting for an accelerator.

    Args:
        tuned: wt by name, all float32 or all float64, on one device.
        base: w0 by name, same shapes, dtypes and devices.
        ratio: the share, in (0, 1).
        step: of the training; chooses which weights are looked at, the same ones in every process.

    Returns:
        The boundary, 0-d, in the dtype and on the device of the weights. Changes that equal it are not above it.
    """
    total = sum(weight.numel() for weight in tuned.values())
    stride = max(1, int(total * ratio / _ABOVE))
    first = step * _SHIFT % stride
    pairs = [(weight.detach().reshape(-1), base[name].reshape(-1)) for name, weight in tuned.items()]
    size = sum(len(range(first, weight.numel(), stride)) for weight, _ in pairs)
    above = ceil(ratio * size)
    device, dtype = pairs[0][0].device, pairs[0][0].dtype
    if above >= size:
        return torch.full((), -1.0, dtype=dtype, device=device)
    if device.type == "cpu":
        parts = on_all_cores(partial(_changes, first, stride), pairs)
        return torch.tensor(_next_below(parts, above), dtype=dtype)
    sampled = torch.cat([weight[first::stride] - origin[first::stride] for weight, origin in pairs])
    return sampled.abs_().kthvalue(size - above).values


def _changes(first: int, stride: int, pair: Sequence[Tensor]) -> Floats:
    weight, origin = (tensor.numpy()[first::stride] for tensor in pair)
    with np.errstate(all="ignore"):  # infinities may meet
        change: Floats = np.abs(weight - origin)
    return change


def _next_below(parts: Sequence[Floats], above: int) -> np.floating[Any]:
    """The number that has `above` others before it in descending order."""
    coarse = np.concatenate([part[::_COARSE] for part in parts])
    rank = coarse.size - 2 * above // _COARSE - 1
    least = np.partition(coarse, rank)[rank] if rank > 0 else -np.inf
    large = np.concatenate(on_all_cores(lambda part: part[part >= least], parts))
    if large.size <= above:  # the coarse sample misled
        large = np.concatenate(parts)
    place = large.size - above - 1
    return np.partition(large, place)[place]
