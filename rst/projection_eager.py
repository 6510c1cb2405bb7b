"""Eq. 17 without a compiler: in chunks that stay in cache, on all cores. Works everywhere."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.comparison_bound import comparison_bound, wide_dtype
from rst.exactness import bits
from rst.worker_pool import CHUNK, PIECE, on_all_cores

Wide = np.ndarray[tuple[int], np.dtype[np.floating[Any]]]

# On an accelerator large enough that launches do not show, small enough that temporaries do not either.
_DEVICE_CHUNK = 1 << 24


def project_eager(pairs: Iterable[tuple[Tensor, Tensor]], threshold: float) -> Tensor:
    """Project 1-D contiguous `(wt, w0)` in place. Returns the number of weights kept, an int64 tensor of shape ()."""
    kept = torch.zeros((), dtype=torch.int64)
    pieces: list[tuple[Tensor, Tensor]] = []
    for weight, origin in pairs:
        if weight.device.type == "cpu":
            pieces += zip(torch.split(weight, PIECE), torch.split(origin, PIECE), strict=True)
        else:
            kept = kept.to(weight.device) + _project_on_device(weight, origin, threshold)
    return kept + sum(on_all_cores(lambda piece: _project_on_cpu(*piece, threshold), pieces))


def _project_on_cpu(weight: Tensor, origin: Tensor, threshold: float) -> int:
    """One piece in chunks through numpy, whose comparisons and masked copies are several times as fast as torch's."""
    raw_weight, raw_origin = bits(weight).numpy(), bits(origin).numpy()
    size = min(CHUNK, weight.numel())
    change, reset = _empty(size, weight.dtype), np.empty(size, dtype=np.bool_)
    bound = change.dtype.type(comparison_bound(threshold, weight.dtype))
    put_back = 0
    for start in range(0, weight.numel(), CHUNK):
        window = slice(start, min(start + CHUNK, weight.numel()))
        part = slice(0, window.stop - start)
        _subtract(weight, origin, window, change[part])
        np.abs(change[part], out=change[part])
        np.less_equal(change[part], bound, out=reset[part])
        np.copyto(raw_weight[window], raw_origin[window], where=reset[part])
        put_back += int(np.count_nonzero(reset[part]))
    return weight.numel() - put_back


def _empty(size: int, dtype: torch.dtype) -> Wide:
    array: Wide = torch.empty(size, dtype=wide_dtype(dtype)).numpy()
    return array


def _subtract(weight: Tensor, origin: Tensor, window: slice, out: Wide) -> None:
    """Write `weight - origin` to `out`; half precision goes through float32, as in torch, but is not rounded again."""
    if weight.dtype == wide_dtype(weight.dtype):
        with np.errstate(all="ignore"):  # infinities may meet
            np.subtract(weight.numpy()[window], origin.numpy()[window], out=out)
    else:
        torch.sub(weight[window].float(), origin[window].float(), out=torch.from_numpy(out))


def _project_on_device(weight: Tensor, origin: Tensor, threshold: float) -> Tensor:
    kept = torch.zeros((), dtype=torch.int64, device=weight.device)
    for part, part_origin in zip(torch.split(weight, _DEVICE_CHUNK), torch.split(origin, _DEVICE_CHUNK), strict=True):
        reset = (part - part_origin).abs_() <= threshold
        torch.where(reset, part_origin, part, out=part)
        kept += part.numel() - reset.count_nonzero()
    return kept
