"""Many changes laid end to end as one, so that what is done to all of them takes a few operations, not a few each."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from rst.parameter_delta import Op, ParameterDelta

Kind = tuple[torch.device, torch.dtype, Op]


def by_kind(changes: Iterable[ParameterDelta]) -> list[list[ParameterDelta]]:
    """Group changes that can be joined: those of one device, dtype and operation, in their order."""
    groups: dict[Kind, list[ParameterDelta]] = {}
    for change in changes:
        groups.setdefault((change.indices.device, change.dtype, change.op), []).append(change)
    return list(groups.values())


def join(changes: Sequence[ParameterDelta]) -> ParameterDelta:
    """Express changes of one kind as the change of one parameter, made of all of theirs laid end to end.

    Positions are int64, so all the parameters together must have fewer than 2^63 weights.
    """
    starts = [0, *accumulate(change.numel for change in changes)]
    indices = [change.indices for change in changes]
    exact_indices = [change.exact_indices for change in changes]
    nothing = torch.empty(0, dtype=torch.int64, device=indices[0].device)
    return ParameterDelta(
        indices=lay([nothing, *indices]) + spread(starts, indices, nothing.device),
        values=lay([change.values for change in changes]),
        shape=(starts[-1],),
        dtype=changes[0].dtype,
        exact_indices=lay([nothing, *exact_indices]) + spread(starts, exact_indices, nothing.device),
        exact_values=lay([change.overlay for change in changes]),
        op=changes[0].op,
    )


def lay(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate on the device of the first part; empty parts may lie on any."""
    return torch.cat([parts[0], *(part for part in parts[1:] if part.numel())])


def spread(numbers: Iterable[int], parts: Iterable[Tensor], device: torch.device) -> Tensor:
    """Repeat each number as often as its part has entries. Shape (entries of all parts,), int64."""
    filled = [(number, part.numel()) for number, part in zip(numbers, parts, strict=False) if part.numel()]
    repeated, counts = torch.tensor(filled, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return torch.repeat_interleave(repeated, counts).to(device)
