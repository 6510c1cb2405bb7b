"""Eq. 17 without a compiler: in chunks that stay in cache, on all cores. Works everywhere."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.numerics.exactness import bits
from rst.numerics.rounding import comparison_bound, wide_dtype
from rst.numerics.worker_pool import CHUNK, deal, on_all_cores

Array = np.ndarray[tuple[int], np.dtype[Any]]

# On an accelerator large enough that launches do not show, small enough that temporaries do not either.
_DEVICE_CHUNK = 1 << 24


def project_eager(pairs: Iterable[tuple[Tensor, Tensor]], threshold: float) -> None:
    """Project 1-D contiguous `(wt, w0)` in place."""
    pieces: list[tuple[Tensor, Tensor]] = []
    for weight, origin in pairs:
        if weight.device.type == "cpu":
            pieces += zip(torch.split(weight, CHUNK), torch.split(origin, CHUNK), strict=True)
        else:  # pragma: no cover  (CUDA)
            _project_on_device(weight, origin, threshold)
    for alike in {weight.dtype: None for weight, _ in pieces}:
        shares = deal([pair for pair in pieces if pair[0].dtype == alike])
        on_all_cores(lambda share: _project_on_cpu(share, threshold), shares)


def _project_on_cpu(pairs: Sequence[tuple[Tensor, Tensor]], threshold: float) -> None:
    """One worker's share, through numpy, whose comparisons and masked copies are several times as fast as torch's."""
    dtype, size = pairs[0][0].dtype, max(weight.numel() for weight, _ in pairs)
    buffer: Array = torch.empty(size, dtype=wide_dtype(dtype)).numpy()
    spare, mask = np.empty_like(buffer), np.empty(size, dtype=np.bool_)
    bound = buffer.dtype.type(comparison_bound(threshold, dtype))
    for weight, origin in pairs:
        raw_weight, raw_origin = bits(weight).numpy(), bits(origin).numpy()
        change, reset = buffer[: raw_weight.size], mask[: raw_weight.size]
        tuned, base = _widen(raw_weight, dtype, change), _widen(raw_origin, dtype, spare[: raw_weight.size])
        with np.errstate(all="ignore"):  # infinities may meet
            np.subtract(tuned, base, out=change)
        np.abs(change, out=change)
        np.less_equal(change, bound, out=reset)
        np.copyto(raw_weight, raw_origin, where=reset)


def _widen(raw: Array, dtype: torch.dtype, out: Array) -> Array:
    """The floats behind `raw`; half precision is written to `out` in float32, exactly."""
    if dtype == torch.bfloat16:  # the upper half of a float32, unknown to numpy
        np.left_shift(raw.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
        return out
    if dtype == torch.float16:
        np.copyto(out, raw.view(np.float16))
        return out
    return raw.view(out.dtype)


def _project_on_device(weight: Tensor, origin: Tensor, threshold: float) -> None:  # pragma: no cover  (CUDA)
    for part, part_origin in zip(torch.split(weight, _DEVICE_CHUNK), torch.split(origin, _DEVICE_CHUNK), strict=True):
        torch.where((part - part_origin).abs_() <= threshold, part_origin, part, out=part)
