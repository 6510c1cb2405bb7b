"""Where two tensors differ in any bit, found in one pass without full-size temporaries, on all cores."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.exactness import bits
from rst.worker_pool import CHUNK, PIECE, on_all_cores

Raw = np.ndarray[tuple[int], np.dtype[np.signedinteger[Any]]]

_DEVICE_CHUNK = 1 << 24


def changed_positions(base: Tensor, tuned: Tensor) -> tuple[Tensor, bool]:
    """Compare two tensors bit by bit.

    Args:
        base: w0, 1-D and contiguous, any dtype.
        tuned: wt, like `base`.

    Returns:
        `(positions, may_have_nan)`: sorted positions of the differing elements, int64 of shape (nnz,), on the tensors'
        device; and False if `tuned` is sure to have no NaN.
    """
    raw_base, raw_tuned = bits(base), bits(tuned)
    if base.device.type != "cpu":
        starts = range(0, base.numel(), _DEVICE_CHUNK)
        windows = [slice(start, start + _DEVICE_CHUNK) for start in starts]
        parts = [(raw_base[w] != raw_tuned[w]).nonzero().squeeze(1) + w.start for w in windows]
        return torch.cat([torch.empty(0, dtype=torch.int64, device=base.device), *parts]), _may_have_nan(tuned)
    pieces = [slice(start, min(start + PIECE, base.numel())) for start in range(0, base.numel(), PIECE)]
    results = on_all_cores(lambda piece: _compare(raw_base.numpy(), raw_tuned.numpy(), tuned, piece), pieces)
    found = [torch.from_numpy(positions) for positions, _ in results if positions.size]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64), any(nan for _, nan in results)


def _compare(base: Raw, raw_tuned: Raw, tuned: Tensor, piece: slice) -> tuple[Raw, bool]:
    differs = np.empty(piece.stop - piece.start, dtype=np.bool_)
    may_have_nan = False
    for start in range(piece.start, piece.stop, CHUNK):
        window = slice(start, min(start + CHUNK, piece.stop))
        # numpy compares several times as fast as torch does here
        np.not_equal(base[window], raw_tuned[window], out=differs[start - piece.start : window.stop - piece.start])
        may_have_nan = may_have_nan or _may_have_nan(tuned[window])
    return np.flatnonzero(differs) + piece.start, may_have_nan


def _may_have_nan(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return False
    # One reduction instead of a mask; the narrow floats have none.
    return tensor.element_size() == 1 or bool(tensor.amax().isnan())
