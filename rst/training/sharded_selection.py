"""Top-r % selection over the shards of all processes: keeps the weights that one process would keep, bit for bit.

The k-th largest change is found by its bits, 16 at a time, with a histogram in each process that is summed over all. Of
equal changes at the boundary, the first in the order of parameters and elements are kept; they are found the same way
by position.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rst.numerics.radix_select import keys_of, kth_smallest, number_of
from rst.numerics.rounding import wide_dtype
from rst.shards.collectives import add_up, together
from rst.shards.layout import ShardLayout
from rst.training.selection import Boundary, Piece, Tie, pieces_of


def sharded_boundary(
    layout: ShardLayout, tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], ratio: float
) -> Boundary:
    """Do what `rst.training.selection.boundary` does, for tensors of which each process has a block. Collective.

    Raises:
        NonFiniteError: a weight is NaN in any process; all raise.
    """
    total = sum(layout.numel(name) for name in tuned)
    budget = round(ratio * total)
    if not budget:
        return float("inf"), []
    wide = wide_dtype(*(weight.dtype for weight in tuned.values()))
    pieces = [piece for name, weight in tuned.items() for piece in pieces_of(name, weight, base)]
    owned = [piece for piece in pieces if layout.owns(piece.name)]
    together(lambda: _check_no_nan(owned, wide), layout.device)
    width = wide.itemsize * 8
    key, below, equal = kth_smallest(
        lambda: (keys_of(torch.from_numpy(piece.changes(1, wide))) for piece in owned),
        total - budget + 1,
        width,
        partial(add_up, device=layout.device),
    )
    threshold = number_of(key, wide)
    if not threshold > 0:
        return threshold, []
    found = [(piece, np.flatnonzero(piece.changes(1, wide) == threshold)) for piece in pieces]
    ties = [(piece, torch.from_numpy(positions) + piece.start) for piece, positions in found]
    above = total - below - equal
    return threshold, _first_ties(layout, tuned, ties, budget - above)


def _check_no_nan(pieces: Sequence[Piece], wide: torch.dtype) -> None:
    for piece in pieces:
        piece.changes(1, wide)


def _first_ties(
    layout: ShardLayout, tuned: Mapping[str, Tensor], ties: Sequence[tuple[Piece, Tensor]], wanted: int
) -> list[Tie]:
    """Return the local equal changes that are among the first `wanted` of all processes."""
    counts = dict.fromkeys(tuned, 0)
    for piece, positions in ties:
        counts[piece.name] += positions.numel()
    last = {}
    for name, count in layout.add_up(counts).items():
        kept = min(count, wanted)
        wanted -= kept
        last[name] = layout.numel(name) if kept == count else _last_kept(layout, name, ties, kept)
    chosen = []
    for piece, positions in ties:
        places = positions[layout.blocks[piece.name].to_global(positions) <= last[piece.name]]
        here = places.to(piece.weight.device)
        chosen.append((piece.parameter, here, piece.weight[here - piece.start]))
    return chosen


def _last_kept(layout: ShardLayout, name: str, ties: Sequence[tuple[Piece, Tensor]], kept: int) -> int:
    """Return the position in the whole parameter of the last of its first `kept` equal changes; -1 if there is none."""
    if not kept:
        return -1
    block = layout.blocks[name]
    mine = [block.to_global(positions) for piece, positions in ties if piece.name == name and layout.owns(name)]
    return kth_smallest(lambda: mine, kept, layout.numel(name).bit_length(), partial(add_up, device=layout.device))[0]
