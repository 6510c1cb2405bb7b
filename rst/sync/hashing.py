"""The hash of words: one 64-bit hash per word, of its place and bits, summed up for `rst.sync.state`.

    sum_k mix(seed + k * P + word[k] * Q)    modulo 2^64, mix: splitmix64's finalizer

On the CPU, numpy computes it on all cores: it has an unsigned shift, which torch lacks, and in cache-sized pieces it
runs at memory speed.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rst.numerics import kernels
from rst.numerics.exactness import bits
from rst.numerics.worker_pool import on_all_cores

Part = tuple[int, Tensor | None, Tensor]
"""Seed in [0, 2^64), places (None: 0 to n - 1) and words, both of shape (n,)."""

MASK = (1 << 64) - 1
PLACE, _VALUE = 0x9E3779B97F4A7C15, 0x2545F4914F6CDD1D  # odd
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_PIECE, _SHARE, _DEVICE_PIECE = 1 << 15, 1 << 20, 1 << 24
_HELD = 1 << 28  # bytes of words, which may be copies cast for this purpose


@torch.no_grad()
def hash_sum(parts: Iterable[Part]) -> int:
    """Add up the hashes of the words of several tensors; in [0, 2^64).

    Parts are requested one after another. Where kernels run, a launch has as many as fit the memory limit.
    """
    hashed, held = 0, 0
    batch: list[Part] = []
    for seed, places, words in parts:
        if not kernels.run_on(words.device):
            hashed += hash_all(seed, words) if places is None else hash_at(seed, places, words)
            continue
        if batch and (held + words.nbytes > _HELD or words.device != batch[0][2].device):
            hashed, held, batch = hashed + _hash_together(batch), 0, []
        where = None if places is None else places.to(words.device, torch.int64).contiguous()
        batch.append((seed, where, bits(words).contiguous()))
        held += words.nbytes
    return (hashed + _hash_together(batch)) & MASK


def _hash_together(batch: list[Part]) -> int:
    if not batch:
        return 0
    from rst.sync.hashing_triton import hash_together

    return hash_together(batch)


@torch.no_grad()
def hash_all(seed: int, flat: Tensor) -> int:
    """Hash a tensor of shape (n,), any non-complex dtype and device, at places 0 to n - 1; in [0, 2^64)."""
    if kernels.run_on(flat.device):
        return hash_sum([(seed, None, flat)])
    if flat.device.type != "cpu":  # pragma: no cover  (CUDA)
        starts = range(0, flat.numel(), _DEVICE_PIECE)
        places = torch.arange(min(_DEVICE_PIECE, flat.numel()), device=flat.device)
        pieces = ((places + start, flat[start : start + _DEVICE_PIECE]) for start in starts)
        return sum(_hash_on_device(seed, where[: piece.numel()], piece) for where, piece in pieces) & MASK
    raw = bits(flat).numpy()
    shares = [slice(start, start + _SHARE) for start in range(0, raw.size, _SHARE)]
    return sum(on_all_cores(lambda share: _hash_run(seed, share.start, raw[share]), shares)) & MASK


@torch.no_grad()
def hash_at(seed: int, places: Tensor, values: Tensor) -> int:
    """Hash values at given places, both of shape (n,); in [0, 2^64)."""
    if kernels.run_on(values.device):
        return hash_sum([(seed, places, values)])
    if values.device.type != "cpu":  # pragma: no cover  (CUDA)
        return _hash_on_device(seed, places.to(values.device, torch.int64), values) & MASK
    where, raw = places.cpu().numpy(), bits(values).numpy()
    hashed, buffers = 0, _buffers(raw.size)
    for start in range(0, raw.size, _PIECE):
        piece = slice(start, start + _PIECE)
        here = np.multiply(where[piece], np.int64(_signed(PLACE)), dtype=np.int64).view(np.uint64)
        here += np.uint64(seed)
        hashed += _hash_piece(here, raw[piece], *buffers)
    return hashed & MASK


def mix(number: int) -> int:
    """Apply splitmix64's finalizer, a bijection of [0, 2^64)."""
    for shift, factor in _ROUNDS:
        number = (number ^ (number >> shift)) * factor & MASK
    return number ^ (number >> _LAST_SHIFT)


def _hash_run(seed: int, first: int, raw: NDArray[np.signedinteger]) -> int:
    places = np.arange(first, first + min(_PIECE, raw.size), dtype=np.uint64)
    places *= np.uint64(PLACE)
    places += np.uint64(seed)
    hashed, buffers = 0, _buffers(raw.size)
    for start in range(0, raw.size, _PIECE):
        piece = raw[start : start + _PIECE]
        hashed += _hash_piece(places[: piece.size], piece, *buffers)
        places += np.uint64(_PIECE * PLACE & MASK)
    return hashed


def _buffers(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    size = min(size, _PIECE)
    return np.empty(size, dtype=np.uint64), np.empty(size, dtype=np.uint64)


def _hash_piece(
    places: NDArray[np.uint64],
    raw: NDArray[np.signedinteger],
    hashes: NDArray[np.uint64],
    shifted: NDArray[np.uint64],
) -> int:
    hashes, shifted = hashes[: raw.size], shifted[: raw.size]
    np.multiply(raw, np.int64(_VALUE), out=hashes.view(np.int64), dtype=np.int64)
    hashes += places
    for shift, factor in _ROUNDS:
        hashes ^= np.right_shift(hashes, np.uint64(shift), out=shifted)
        hashes *= np.uint64(factor)
    hashes ^= np.right_shift(hashes, np.uint64(_LAST_SHIFT), out=shifted)
    return int(hashes.sum())


def _hash_on_device(seed: int, places: Tensor, values: Tensor) -> int:
    hashes = bits(values).to(torch.int64).mul(_VALUE).add_(places.mul(_signed(PLACE)).add_(_signed(seed)))
    for shift, factor in _ROUNDS:
        hashes.bitwise_xor_(_shifted(hashes, shift)).mul_(_signed(factor))
    return int(hashes.bitwise_xor_(_shifted(hashes, _LAST_SHIFT)).sum())


def _shifted(hashes: Tensor, by: int) -> Tensor:
    """Shift right, filling with zeros: torch's own shift of int64 extends the sign."""
    return (hashes >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
