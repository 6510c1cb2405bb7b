"""Summing the hashes of words on a GPU: one launch for all tensors with the same word width."""

from collections import defaultdict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rst.numerics.blocks_triton import WORD, block_of, load
from rst.numerics.tensor_table import TensorTable

Part = tuple[int, Tensor | None, Tensor]


def hash_together(parts: Sequence[Part]) -> int:
    """Add up the hashes of words, as `rst.sync.hashing.hash_sum` does; modulo 2^64, of either sign.

    Args:
        parts: seed in [0, 2^64), places (int64; None: 0 to n - 1) and words, both of shape (n,) and contiguous, on
            one device.
    """
    widths: defaultdict[int, list[Part]] = defaultdict(list)
    for part in parts:
        widths[part[2].element_size()].append(part)
    sums = [_launch(width, alike) for width, alike in widths.items()]
    return int(torch.stack(sums).sum()) if sums else 0  # the host waits here


def _launch(width: int, parts: Sequence[Part]) -> Tensor:
    columns = [
        [words.data_ptr() for _, _, words in parts],
        [0 if places is None else places.data_ptr() for _, places, _ in parts],
        [seed - (seed >> 63 << 64) for seed, _, _ in parts],
    ]
    device = parts[0][2].device
    table = TensorTable.build(columns, [words.numel() for _, _, words in parts], block_of(width), device)
    hashes = torch.zeros(table.blocks, dtype=torch.int64, device=device)
    if table.blocks:
        with torch.cuda.device_of(hashes):
            add_hashes[(table.blocks,)](table.rows, table.row_of_block, hashes, WORD=WORD[width], BLOCK=block_of(width))
    return hashes.sum()


@triton.jit
def add_hashes(rows, row_of_block, hashes, WORD: tl.constexpr, BLOCK: tl.constexpr):
    """Compute the sum of the hashes of one block."""
    program = tl.program_id(0)
    row = rows + tl.load(row_of_block + program) * 5
    start = (program - tl.load(row + 4)) * BLOCK
    left = tl.load(row + 3) - start
    words_at, places_at = tl.load(row), tl.load(row + 1)
    words = words_at.to(tl.pointer_type(WORD)) + start
    offsets = tl.arange(0, BLOCK)
    if (places_at == 0) & (left >= BLOCK) & ((words_at & 15) == 0):
        found = hash_of(load(words, offsets, left, True), start + offsets, tl.load(row + 2))
        tl.store(hashes + program, tl.sum(found, 0))
    else:
        places = start + offsets
        if places_at != 0:
            places = load(places_at.to(tl.pointer_type(tl.int64)) + start, offsets, left, False)
        found = hash_of(load(words, offsets, left, False), places, tl.load(row + 2))
        tl.store(hashes + program, tl.sum(tl.where(offsets < left, found, 0), 0))


@triton.jit
def hash_of(words, places, seed):
    """Apply splitmix64's finalizer to seed + place * P + word * Q; the constants are those of `rst.sync.hashing`."""
    hashes = words.to(tl.int64) * 0x2545F4914F6CDD1D + places * -0x61C8864680B583EB + seed
    hashes = (hashes ^ (hashes.to(tl.uint64, bitcast=True) >> 30).to(tl.int64, bitcast=True)) * -0x40A7B892E31B1A47
    hashes = (hashes ^ (hashes.to(tl.uint64, bitcast=True) >> 27).to(tl.int64, bitcast=True)) * -0x6B2FB644ECCEEE15
    return hashes ^ (hashes.to(tl.uint64, bitcast=True) >> 31).to(tl.int64, bitcast=True)
