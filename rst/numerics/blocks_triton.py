"""Common parts of kernels over a `TensorTable`: reading and writing one block, 16 bytes at a time where possible.

A full block whose addresses are multiples of 16 bytes needs no masks. Ends, and views with other start addresses, are
processed element by element.
"""

from typing import Any

import torch
import triton
import triton.language as tl

WORD = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}
"""Elements are moved as integers of their width, so that NaN payloads do not change."""
FLOAT: dict[torch.dtype, Any] = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
_BYTES = 1 << 12


def block_of(width: int) -> int:
    """Return the number of elements of `width` bytes per program."""
    return _BYTES // width


@triton.jit
def find_pair(rows, row_of_block, WORD: tl.constexpr, BLOCK: tl.constexpr):
    """This program's block of two tensors alike, whose addresses and count of elements begin a row of the table.

    Returns both addresses, where the block starts, how many elements there are from there on, and whether it is full
    and may be moved 16 bytes at a time.
    """
    program = tl.program_id(0)
    row = rows + tl.load(row_of_block + program) * 4
    start = (program - tl.load(row + 3)) * BLOCK
    left = tl.load(row + 2) - start
    one_at, other_at = tl.load(row), tl.load(row + 1)
    one = one_at.to(tl.pointer_type(WORD)) + start
    other = other_at.to(tl.pointer_type(WORD)) + start
    return one, other, start, left, (left >= BLOCK) & (((one_at | other_at) & 15) == 0)


@triton.jit
def load(at, offsets, left, FULL: tl.constexpr):
    """Load the elements of a block at an address, zero beyond the end."""
    if FULL:
        return tl.load(tl.multiple_of(at + offsets, 16))
    else:
        return tl.load(at + offsets, mask=offsets < left, other=0)


@triton.jit
def store(at, offsets, left, elements, FULL: tl.constexpr):
    """Store a block, up to the end."""
    if FULL:
        tl.store(tl.multiple_of(at + offsets, 16), elements)
    else:
        tl.store(at + offsets, elements, mask=offsets < left)


@triton.jit
def widened(word, FLOAT: tl.constexpr, WIDE: tl.constexpr):
    """Convert words to the numbers they encode, in a dtype as wide or wider. Exact."""
    if FLOAT == tl.bfloat16:
        return (word.to(tl.int32) << 16).to(tl.float32, bitcast=True).to(WIDE)
    else:
        return word.to(FLOAT, bitcast=True).to(WIDE)
