"""Eq. 17 without a compiler: in chunks that stay in cache, on all cores. Works everywhere."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.numerics.exactness import bits
from rst.numerics.rounding import comparison_bound, wide_dtype
from rst.numerics.worker_pool import CHUNK, divide, on_all_cores

Pair = tuple[Tensor, Tensor]
Array = np.ndarray[tuple[int], np.dtype[Any]]

# numpy has no bfloat16; its bits are the upper half of a float32's.
_NUMPY_DTYPE = {torch.float64: np.float64, torch.float32: np.float32, torch.float16: np.float16}

# On an accelerator: large enough to hide launches, small enough to keep temporaries small.
_DEVICE_CHUNK = 1 << 24


@torch.no_grad()
def project_eager(pairs: Iterable[Pair], threshold: float | Tensor) -> None:
    """Reset, in place, the weights with `|wt - w0| <= threshold` to w0.

    The difference is computed in the weights' own dtype and `threshold` rounded to it, so the result is that of
    `torch.where((wt - w0).abs() > threshold, wt, w0)`, except that a NaN stays where it is for the export to find.

    Args:
        pairs: `(wt, w0)` of each parameter, requested one after another: same shape, dtype and device, any real
            floating dtype. wt is changed in place.
        threshold: tau, at least 0; a tensor of shape () for weights on an accelerator.
    """
    pieces: defaultdict[torch.dtype, list[tuple[Array, Array]]] = defaultdict(list)
    for weight, origin in pairs:
        flat = flat_views(weight, origin)
        if flat and weight.device.type == "cpu":
            for part, part_origin in zip(*(torch.split(view, CHUNK) for view in flat), strict=True):
                pieces[weight.dtype].append((bits(part).numpy(), bits(part_origin).numpy()))
        else:
            _project_with_torch(*(flat or (weight, origin)), threshold)
    for dtype, alike in pieces.items():
        wide = torch.empty(0, dtype=wide_dtype(dtype)).numpy().dtype
        bound = wide.type(comparison_bound(float(threshold), dtype))
        on_all_cores(partial(_project_with_numpy, dtype, bound), divide(alike))


def flat_views(weight: Tensor, origin: Tensor) -> Pair | None:
    """View both tensors as 1-D in the weight's memory order (channels-last included); None if one has gaps."""
    order = sorted(range(weight.ndim), key=weight.stride, reverse=True)
    pair = weight.detach().permute(order), origin.permute(order)
    if all(view.is_contiguous() for view in pair):
        return pair[0].view(-1), pair[1].view(-1)
    return None


def _project_with_numpy(dtype: torch.dtype, bound: np.floating[Any], pairs: Sequence[tuple[Array, Array]]) -> None:
    """Project one worker's raw bits; numpy's comparisons and masked copies are several times as fast as torch's."""
    size = max(weight.size for weight, _ in pairs)
    buffer, spare, mask = np.empty(size, bound.dtype), np.empty(size, bound.dtype), np.empty(size, np.bool_)
    for weight, origin in pairs:
        change, reset = buffer[: weight.size], mask[: weight.size]
        if dtype == torch.bfloat16:
            tuned, base = change, spare[: weight.size]
            for raw, floats in ((weight, tuned), (origin, base)):
                np.left_shift(raw.view(np.uint16), 16, out=floats.view(np.uint32), dtype=np.uint32)
        else:
            tuned, base = weight.view(_NUMPY_DTYPE[dtype]), origin.view(_NUMPY_DTYPE[dtype])
        with np.errstate(all="ignore"):  # infinities may meet
            np.subtract(tuned, base, out=change, dtype=bound.dtype)
        np.abs(change, out=change)
        np.less_equal(change, bound, out=reset)
        np.copyto(weight, origin, where=reset)  # the bits: a float's copy might quieten a NaN


def _project_with_torch(weight: Tensor, origin: Tensor, threshold: float | Tensor) -> None:
    """Project in chunks along the first axis on an accelerator, and weights with gaps in their memory."""
    if isinstance(threshold, Tensor):
        threshold = threshold.to(weight.device)
    if not weight.ndim:
        weight, origin = weight[None], origin[None]
    for part, part_origin in zip(torch.split(weight, _DEVICE_CHUNK), torch.split(origin, _DEVICE_CHUNK), strict=True):
        torch.where((part - part_origin).abs_() <= threshold, part_origin, part, out=part)
