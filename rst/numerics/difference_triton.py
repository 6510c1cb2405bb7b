"""Positions where tensors on a GPU differ in any bit: one launch to count, one to write the positions."""

from collections import defaultdict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rst.numerics.blocks_triton import WORD, block_of, find_pair, load
from rst.numerics.tensor_table import TensorTable

Pair = tuple[Tensor, Tensor]


def count_changed_of_all(pairs: Sequence[Pair]) -> list[int]:
    """Count the elements of each pair of tensors, of one shape and dtype, that differ in any bit. The host waits."""
    flat = [(base.reshape(-1), tuned.reshape(-1)) for base, tuned in pairs]
    counts = [0] * len(pairs)
    for numbers, table, by_block in _compare(flat):
        for number, count in zip(numbers, table.sums(by_block), strict=True):
            counts[number] = count
    return counts


def changed_positions_of_all(pairs: Sequence[Pair]) -> list[Tensor]:
    """Compare pairs of tensors bit by bit.

    Args:
        pairs: w0 and wt, 1-D and contiguous, any dtype.

    Returns:
        Sorted positions of the differing elements of each pair, int64 of shape (nnz,), on the tensors' device.
    """
    positions: dict[int, Tensor] = {}
    for numbers, table, by_block in _compare(pairs):
        lengths = table.sums(by_block)  # the host waits here
        found = torch.empty(sum(lengths), dtype=torch.int64, device=by_block.device)
        width = pairs[numbers[0]][0].element_size()
        if found.numel():
            ends = by_block.cumsum(0)
            with torch.cuda.device_of(found):
                write_positions[(table.blocks,)](
                    table.rows, table.row_of_block, ends, found, WORD=WORD[width], BLOCK=block_of(width)
                )
        positions.update(zip(numbers, torch.split(found, lengths), strict=True))
    return [positions[number] for number in range(len(pairs))]


def _compare(pairs: Sequence[Pair]) -> list[tuple[list[int], TensorTable, Tensor]]:
    """Return, for each element width and device, the pairs' indices, their table, and changed elements by block."""
    groups: defaultdict[tuple[int, torch.device], list[int]] = defaultdict(list)
    for number, (base, _) in enumerate(pairs):
        groups[base.element_size(), base.device].append(number)
    compared = []
    for (width, device), numbers in groups.items():
        columns = [[pairs[number][side].data_ptr() for number in numbers] for side in (0, 1)]
        sizes = [pairs[number][0].numel() for number in numbers]
        table = TensorTable.build(columns, sizes, block_of(width), device)
        counts = torch.zeros(table.blocks, dtype=torch.int32, device=device)
        if table.blocks:
            with torch.cuda.device_of(counts):
                count[(table.blocks,)](table.rows, table.row_of_block, counts, WORD=WORD[width], BLOCK=block_of(width))
        compared.append((numbers, table, counts))
    return compared


@triton.jit
def count(rows, row_of_block, counts, WORD: tl.constexpr, BLOCK: tl.constexpr):
    """Count the differing elements of each block."""
    base, tuned, _, left, full = find_pair(rows, row_of_block, WORD, BLOCK)
    if full:
        tl.store(counts + tl.program_id(0), tl.sum(differs(base, tuned, left, BLOCK, True), 0))
    else:
        tl.store(counts + tl.program_id(0), tl.sum(differs(base, tuned, left, BLOCK, False), 0))


@triton.jit
def write_positions(rows, row_of_block, ends, positions, WORD: tl.constexpr, BLOCK: tl.constexpr):
    """Write the positions of each block's differing elements, after those of the blocks before."""
    base, tuned, start, left, _ = find_pair(rows, row_of_block, WORD, BLOCK)
    found = differs(base, tuned, left, BLOCK, False)
    up_to = tl.cumsum(found, 0)
    first = tl.load(ends + tl.program_id(0)) - tl.sum(found, 0)
    places = start + tl.arange(0, BLOCK)
    tl.store(positions + first + up_to - 1, places, mask=found > 0)


@triton.jit
def differs(base, tuned, left, BLOCK: tl.constexpr, FULL: tl.constexpr):
    """Return 1 where two blocks differ, else 0."""
    offsets = tl.arange(0, BLOCK)
    return (load(base, offsets, left, FULL) != load(tuned, offsets, left, FULL)).to(tl.int32)
