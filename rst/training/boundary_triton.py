"""Where the top r % of sampled changes ends, and keeping them, on a GPU: launches do not grow with the parameters.

The boundary is found as in `rst.numerics.radix_select`, from the largest change down: one launch computes a histogram
of the first 16 bits of all sampled changes, the next launch one of the next 16 bits of those that share the first.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rst.numerics.blocks_triton import FLOAT, WORD, block_of, find_pair, load, store, widened
from rst.numerics.rounding import wide_dtype
from rst.numerics.tensor_table import TensorTable
from rst.training.projection_eager import Pair
from rst.training.projection_triton import TritonProjection

_BLOCK = 1024
_DIGIT = 16
_DIGITS = 1 << _DIGIT


def estimate(pairs: Sequence[Pair], ratio: float, first: int, stride: int) -> tuple[Tensor, Tensor]:
    """Estimate the boundary, and the share of changes equal to it to keep, from a sample.

    Args:
        pairs: flat weights and origins on one device.
        ratio: the share to be kept.
        first: position of the first sampled change of each parameter.
        stride: distance between sampled changes.

    Returns:
        Both of shape (), on the device.
    """
    device = pairs[0][0].device
    wide = wide_dtype(*(weight.dtype for weight, _ in pairs))
    seen = sum(len(range(first, weight.numel(), stride)) for weight, _ in pairs)
    above = round(ratio * seen)
    if not above:
        return torch.full((), float("inf"), dtype=wide, device=device), torch.zeros((), device=device)
    tables = _tables(pairs, stride)
    width = 8 * wide.itemsize
    prefix = torch.zeros(1, dtype=torch.int64, device=device)
    left = torch.full((1,), above, dtype=torch.int64, device=device)  # ranks, from the largest of those with the prefix
    equal = left
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        counts = torch.zeros(_DIGITS, dtype=torch.int32, device=device)
        for dtype, table in tables.items():
            with torch.cuda.device_of(counts):
                histogram[(table.blocks,)](
                    table.rows,
                    table.row_of_block,
                    first,
                    stride,
                    prefix,
                    counts,
                    WORD=WORD[dtype.itemsize],
                    FLOAT=FLOAT[dtype],
                    WIDE=FLOAT[wide],
                    SHIFT=shift,
                    BLOCK=_BLOCK,
                )
        from_top = counts.flip(0)
        up_to = from_top.cumsum(0)
        place = (up_to < left).sum(0, keepdim=True)
        equal = from_top.gather(0, place)
        left = left - (up_to.gather(0, place) - equal)
        prefix = prefix << _DIGIT | (_DIGITS - 1 - place)
    value = (prefix if width == 64 else prefix.to(torch.int32)).view(wide)
    return value.squeeze(0), (left / equal).squeeze(0)


def keep_lucky(project: TritonProjection, pairs: Iterable[Pair], value: Tensor, limit: Tensor) -> None:
    """Keep the changes above a boundary, and those equal to it whose position has a hash below a limit.

    Args:
        project: holds the tables of the weights.
        pairs: flat weights in half precision, changed in place, and their origins.
        value: the boundary, float32 or float64 of shape ().
        limit: limit on the 16 bits of the hash, of shape ().
    """
    groups: defaultdict[tuple[torch.dtype, torch.device], list[Pair]] = defaultdict(list)
    for weight, origin in pairs:
        groups[weight.dtype, weight.device].append((weight, origin))
    for (dtype, device), group in groups.items():
        table = project.plan(dtype, device, group).table
        if table.blocks:
            with torch.cuda.device_of(table.rows):
                keep[(table.blocks,)](
                    table.rows,
                    table.row_of_block,
                    value.to(device, torch.float32),
                    limit.to(device, torch.float32),
                    WORD=WORD[dtype.itemsize],
                    FLOAT=FLOAT[dtype],
                    BLOCK=block_of(dtype.itemsize),
                )


def _tables(pairs: Sequence[Pair], stride: int) -> dict[torch.dtype, TensorTable]:
    """Return one table per dtype: addresses, elements, and as many blocks as the sampled elements need."""
    tables = {}
    for dtype in dict.fromkeys(weight.dtype for weight, _ in pairs if weight.numel()):
        group = [pair for pair in pairs if pair[0].dtype == dtype]
        sizes = [weight.numel() for weight, _ in group]
        columns = [[weight.data_ptr() for weight, _ in group], [origin.data_ptr() for _, origin in group], sizes]
        sampled = [-(-size // stride) for size in sizes]
        tables[dtype] = TensorTable.build(columns, sampled, _BLOCK, group[0][0].device)
    return tables


@triton.jit(do_not_specialize=["first", "stride"])
def histogram(
    rows,
    row_of_block,
    first,
    stride,
    prefix,
    counts,
    WORD: tl.constexpr,
    FLOAT: tl.constexpr,
    WIDE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count 16 bits of the sampled changes that share the bits above them."""
    program = tl.program_id(0)
    row = rows + tl.load(row_of_block + program) * 5
    start = (program - tl.load(row + 4)) * BLOCK
    places = first + (start + tl.arange(0, BLOCK)) * stride
    there = places < tl.load(row + 2)
    weight = tl.load(tl.load(row).to(tl.pointer_type(WORD)) + places, mask=there, other=0)
    origin = tl.load(tl.load(row + 1).to(tl.pointer_type(WORD)) + places, mask=there, other=0)
    change = distance(weight, origin, FLOAT, WIDE)
    change = tl.where(change == change, change, 0.0)
    if WIDE == tl.float64:
        keys = change.to(tl.int64, bitcast=True)
    else:
        keys = change.to(tl.int32, bitcast=True).to(tl.int64)
    counted = there & ((keys >> SHIFT >> 16) == tl.load(prefix))
    tl.atomic_add(counts + (keys >> SHIFT & 65535), 1, mask=counted)


@triton.jit
def keep(rows, row_of_block, value_there, limit_there, WORD: tl.constexpr, FLOAT: tl.constexpr, BLOCK: tl.constexpr):
    """Process one block of one weight in half precision."""
    weights, origins, start, left, full = find_pair(rows, row_of_block, WORD, BLOCK)
    value, limit = tl.load(value_there), tl.load(limit_there)
    if full:
        keep_block(weights, origins, start, left, value, limit, FLOAT, BLOCK, True)
    else:
        keep_block(weights, origins, start, left, value, limit, FLOAT, BLOCK, False)


@triton.jit
def keep_block(
    weights, origins, start, left, value, limit, FLOAT: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr
):
    """Keep the changes above the boundary, and those at it that the hash selects."""
    offsets = tl.arange(0, BLOCK)
    weight = load(weights, offsets, left, FULL)
    origin = load(origins, offsets, left, FULL)
    change = distance(weight, origin, FLOAT, tl.float32)
    hashes = (start + offsets) * 2654435761 >> 16 & 65535
    unlucky = hashes.to(tl.float32) >= limit
    result = tl.where((change < value) | ((change == value) & unlucky), origin, weight)
    store(weights, offsets, left, result, FULL)


@triton.jit
def distance(weight, origin, FLOAT: tl.constexpr, WIDE: tl.constexpr):
    """Compute the magnitude of a change, rounded to the weights' own dtype."""
    if FLOAT == tl.bfloat16:
        change = tl.abs(widened(weight, FLOAT, tl.float32) - widened(origin, FLOAT, tl.float32))
        raw = change.to(tl.int32, bitcast=True)
        rounded = (raw + 0x7FFF + (raw >> 16 & 1)) & ~0xFFFF
        return tl.where(change == change, rounded.to(tl.float32, bitcast=True), change).to(WIDE)
    elif FLOAT == tl.float16:
        change = tl.abs(widened(weight, FLOAT, tl.float32) - widened(origin, FLOAT, tl.float32))
        return change.to(tl.float16).to(WIDE)
    else:
        return tl.abs(weight.to(FLOAT, bitcast=True) - origin.to(FLOAT, bitcast=True)).to(WIDE)
