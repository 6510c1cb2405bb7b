"""Positions where two tensors differ in any bit, found in one pass without full-size temporaries, on all cores."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.numerics import kernels
from rst.numerics.exactness import bits
from rst.numerics.worker_pool import CHUNK, on_all_cores

Pair = tuple[Tensor, Tensor]
Raw = np.ndarray[tuple[int], np.dtype[np.signedinteger[Any]]]

_DEVICE_CHUNK = 1 << 24
_INFINITIES = {
    torch.float64: 0x7FF0_0000_0000_0000,
    torch.float32: 0x7F80_0000,
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
}
_HELD = 1 << 28  # bytes of w0, which may be on the device only for the comparison


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
    if kernels.run_on(base.device):
        return next(changed_positions_of_each([(base, tuned)]))
    if base.device.type != "cpu":  # pragma: no cover  (CUDA)
        starts = range(0, base.numel(), _DEVICE_CHUNK)
        windows = [slice(start, start + _DEVICE_CHUNK) for start in starts]
        parts = [(raw_base[w] != raw_tuned[w]).nonzero().squeeze(1) + w.start for w in windows]
        positions = torch.cat([torch.empty(0, dtype=torch.int64, device=base.device), *parts])
        return positions, tuned.is_floating_point()
    infinity = infinity_bits(tuned.dtype)
    share = max(CHUNK, -(-base.numel() // (2 * torch.get_num_threads())))
    shares = [slice(start, min(start + share, base.numel())) for start in range(0, base.numel(), share)]
    results = on_all_cores(lambda share: _compare(raw_base.numpy(), raw_tuned.numpy(), share, infinity), shares)
    found = [torch.from_numpy(positions) for part, _ in results for positions in part]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64), any(nan for _, nan in results)


def changed_positions_of_each(pairs: Iterable[Pair]) -> Iterator[tuple[Tensor, bool]]:
    """Yield what `changed_positions` returns for each pair of tensors, w0 and wt.

    Pairs are requested one after another. Where kernels run, two launches process as many as fit the memory limit.
    """
    for batch in _batches(pairs):
        if not kernels.run_on(batch[0][1].device):
            yield from (changed_positions(base, tuned) for base, tuned in batch)
            continue
        from rst.numerics.difference_triton import changed_positions_of_all

        found = changed_positions_of_all(batch)
        may_have_nan = _have_nan([tuned[places] for places, (_, tuned) in zip(found, batch, strict=True)])
        yield from ((positions, may_have_nan) for positions in found)


def count_changed(pairs: Iterable[Pair]) -> list[int]:
    """Count the elements of each pair of tensors, w0 and wt of one shape, dtype and device, that differ in any bit.

    Pairs are requested one after another. Where kernels run, a launch processes as many as fit the memory limit.
    """
    counts = []
    for batch in _batches(pairs):
        if kernels.run_on(batch[0][1].device):
            from rst.numerics.difference_triton import count_changed_of_all

            counts += count_changed_of_all(batch)
        else:
            counts += [changed_positions(base.reshape(-1), tuned.reshape(-1))[0].numel() for base, tuned in batch]
    return counts


def _have_nan(parts: list[Tensor]) -> bool:
    floats = [part for part in parts if part.is_floating_point()]
    if any(part.element_size() == 1 for part in floats):  # float8's NaNs differ by format: say that there may be some
        return True
    return bool(floats) and bool(torch.stack([part.isnan().any() for part in floats]).any())  # the host waits once


def _batches(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    batch: list[Pair] = []
    held = 0
    for base, tuned in pairs:
        if not kernels.run_on(tuned.device):
            if batch:
                yield batch
            yield [(base, tuned)]
            batch, held = [], 0
            continue
        if batch and (tuned.device != batch[0][1].device or held + base.nbytes > _HELD):
            yield batch
            batch, held = [], 0
        batch.append((base, tuned))
        held += base.nbytes
    if batch:
        yield batch


def may_hold_nan(tensor: Tensor) -> bool:
    """Return False if a tensor of any non-complex dtype surely has no NaN; on a CPU one pass over its bits tells."""
    infinity = infinity_bits(tensor.dtype)
    if infinity is None or not tensor.numel():
        return False
    if tensor.device.type != "cpu" or tensor.element_size() == 1 or not tensor.is_contiguous():
        return True
    raw = bits(tensor.detach().reshape(-1)).numpy()
    share = max(CHUNK, -(-raw.size // (2 * torch.get_num_threads())))
    shares = [raw[start : start + share] for start in range(0, raw.size, share)]
    return any(on_all_cores(lambda part: _exceeds(part, infinity), shares))


def _exceeds(raw: Raw, infinity: int) -> bool:
    """Return whether any magnitude has larger bits than infinity."""
    buffer, largest = np.empty(min(CHUNK, raw.size), dtype=raw.dtype), np.iinfo(raw.dtype).max
    for start in range(0, raw.size, CHUNK):
        part = raw[start : start + CHUNK]
        if np.bitwise_and(part, largest, out=buffer[: part.size]).max() > infinity:
            return True
    return False


def infinity_bits(dtype: torch.dtype) -> int | None:
    """Return the bits of +infinity: a magnitude with larger bits is a NaN. None for dtypes without NaN."""
    # float8's NaNs differ by format: say that there may be some
    return _INFINITIES.get(dtype, 0) if dtype.is_floating_point else None


def _compare(base: Raw, tuned: Raw, share: slice, infinity: int | None) -> tuple[list[Raw], bool]:
    # numpy compares several times as fast as torch here
    mask = np.empty(min(CHUNK, share.stop - share.start), dtype=np.bool_)
    buffer = np.empty_like(mask, dtype=base.dtype)
    found, may_have_nan = [], False
    for start in range(share.start, share.stop, CHUNK):
        window = slice(start, min(start + CHUNK, share.stop))
        differs, magnitude = mask[: window.stop - start], buffer[: window.stop - start]
        np.not_equal(base[window], tuned[window], out=differs)
        positions = np.flatnonzero(differs)
        if positions.size:
            found.append(positions + start)
        if infinity is not None and not may_have_nan:
            np.bitwise_and(tuned[window], np.iinfo(tuned.dtype).max, out=magnitude)
            may_have_nan = bool(magnitude.max() > infinity)
    return found, may_have_nan
