"""Eq. 17 without a compiler: in chunks that stay in cache, on all cores. Works everywhere."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.comparison_bound import comparison_bound, wide_dtype
from rst.exactness import bits
from rst.worker_pool import CHUNK, PIECE, on_all_cores

Array = np.ndarray[tuple[int], np.dtype[Any]]

# On an accelerator large enough that launches do not show, small enough that temporaries do not either.
_DEVICE_CHUNK = 1 << 24


def project_eager(pairs: Iterable[tuple[Tensor, Tensor]], threshold: float) -> None:
    """Project 1-D contiguous `(wt, w0)` in place."""
    pieces: list[tuple[Tensor, Tensor]] = []
    for weight, origin in pairs:
        if weight.device.type == "cpu":
            pieces += zip(torch.split(weight, PIECE), torch.split(origin, PIECE), strict=True)
        else:
            _project_on_device(weight, origin, threshold)
    on_all_cores(lambda piece: _project_on_cpu(*piece, threshold), pieces)


def _project_on_cpu(weight: Tensor, origin: Tensor, threshold: float) -> None:
    """One piece in chunks through numpy, whose comparisons and masked copies are several times as fast as torch's."""
    dtype = weight.dtype
    raw_weight, raw_origin = bits(weight).numpy(), bits(origin).numpy()
    size = min(CHUNK, weight.numel())
    change: Array = torch.empty(size, dtype=wide_dtype(dtype)).numpy()
    spare, reset = np.empty_like(change), np.empty(size, dtype=np.bool_)
    bound = change.dtype.type(comparison_bound(threshold, dtype))
    for start in range(0, weight.numel(), CHUNK):
        window = slice(start, min(start + CHUNK, weight.numel()))
        part = slice(0, window.stop - start)
        tuned = _widen(raw_weight[window], dtype, change[part])
        base = _widen(raw_origin[window], dtype, spare[part])
        with np.errstate(all="ignore"):  # infinities may meet
            np.subtract(tuned, base, out=change[part])
        np.abs(change[part], out=change[part])
        np.less_equal(change[part], bound, out=reset[part])
        np.copyto(raw_weight[window], raw_origin[window], where=reset[part])


def _widen(raw: Array, dtype: torch.dtype, out: Array) -> Array:
    """The floats behind `raw`; half precision is written to `out` in float32, exactly."""
    if dtype == torch.bfloat16:  # the upper half of a float32, unknown to numpy
        np.left_shift(raw.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
        return out
    if dtype == torch.float16:
        np.copyto(out, raw.view(np.float16))
        return out
    return raw.view(out.dtype)


def _project_on_device(weight: Tensor, origin: Tensor, threshold: float) -> None:
    for part, part_origin in zip(torch.split(weight, _DEVICE_CHUNK), torch.split(origin, _DEVICE_CHUNK), strict=True):
        torch.where((part - part_origin).abs_() <= threshold, part_origin, part, out=part)
