"""The changed weights of a shard, by position in the whole parameter, and gathering them in the first process."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from rst.delta.parameter_delta import changed_weights
from rst.numerics.exactness import as_bytes
from rst.shards.collectives import gather_bytes
from rst.shards.layout import ShardLayout

Entries = tuple[Tensor, Tensor, Tensor]
"""Positions in the whole parameter, int64, and w0 and wt there; all of shape (nnz,)."""


def changed_entries(layout: ShardLayout, name: str, base: Tensor, tuned: Tensor) -> Entries:
    """Compare this process' block of a parameter with that of w0, bit by bit; no entries if another process owns it.

    Raises:
        ParameterMismatchError: shapes or dtypes differ.
        NonFiniteError: a weight is NaN.
    """
    if not layout.owns(name):
        nothing = torch.empty(0, dtype=tuned.dtype)
        return torch.empty(0, dtype=torch.int64), nothing, nothing
    positions, origin, target = changed_weights(name, base, tuned)
    return layout.blocks[name].to_global(positions).cpu(), origin.cpu(), target.cpu()


def collect(layout: ShardLayout, mine: Mapping[str, Entries]) -> dict[str, Entries] | None:
    """Gather the entries of all processes in the first, sorted by position; None elsewhere. Collective."""
    counts = torch.tensor([positions.numel() for positions, _, _ in mine.values()], dtype=torch.int64)
    arrays = [counts, *(array for entries in mine.values() for array in entries)]
    received = gather_bytes(torch.cat([as_bytes(array) for array in arrays]), layout.device)
    if received is None:
        return None
    dtypes = {name: origin.dtype for name, (_, origin, _) in mine.items()}
    parts = [_unpack(dtypes, raw) for raw in received]
    return {name: _in_order([part[name] for part in parts]) for name in mine}


def _unpack(dtypes: Mapping[str, torch.dtype], raw: Tensor) -> dict[str, Entries]:
    start = 0

    def take(count: int, dtype: torch.dtype) -> Tensor:
        nonlocal start
        begin, start = start, start + count * dtype.itemsize
        return raw[begin:start].clone().view(dtype)  # a copy, because views need aligned memory

    counts = take(len(dtypes), torch.int64).tolist()
    return {
        name: (take(count, torch.int64), take(count, dtype), take(count, dtype))
        for (name, dtype), count in zip(dtypes.items(), counts, strict=True)
    }


def _in_order(parts: Sequence[Entries]) -> Entries:
    positions, origin, target = (torch.cat(arrays) for arrays in _columns(parts))
    order = positions.argsort()
    return positions[order], origin[order], target[order]


def _columns(parts: Sequence[Entries]) -> Iterator[list[Tensor]]:
    for column in range(3):
        yield [part[column] for part in parts]
