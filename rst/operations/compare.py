"""Two deltas side by side, before they are combined: where they meet, and whether they agree there."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint, Weights, open_checkpoint
from rst.delta.file import load_delta
from rst.delta.parameter_delta import ParameterDelta, gather
from rst.delta.sparse_delta import SparseDelta
from rst.delta.validation import validate
from rst.errors import ParameterMismatchError
from rst.numerics.exactness import bit_equal, bits
from rst.numerics.fingerprint import digest
from rst.operations.base_checks import names_in_base
from rst.operations.residual_angle import Angle, angle_between, joint_cosine, log_length

Agreement = Literal["same", "different", "first only", "second only"]


@dataclass(frozen=True)
class Overlap:
    """How two changes of one parameter, or of all parameters together, relate.

    Attributes:
        first: number of positions that the first delta changes.
        second: number of positions that the second changes.
        shared: number of positions that both change.
        same: number of shared positions at which both lead to the same value, bit for bit. None if that cannot be told.
        opposed: number of shared positions at which the residuals have opposite signs. None if that cannot be told.
        cosine: of the angle between both residuals as vectors over all weights (equally over the positions that either
            changes, as all others are zero in both), in float64. None if that cannot be told, if one of the vectors is
            zero, or if an entry is not finite.
        same_base: whether the digests of the base agree; None where one is not recorded, or nothing is in common.
    """

    first: int
    second: int
    shared: int
    same: int | None
    opposed: int | None
    cosine: float | None
    same_base: bool | None

    @property
    def union(self) -> int:
        """Number of positions that either delta changes."""
        return self.first + self.second - self.shared

    @property
    def jaccard(self) -> float | None:
        """Shared positions over those that either changes, in [0, 1]; None where nothing is changed."""
        return self.shared / self.union if self.union else None


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    Attributes:
        parameters: by name, every parameter that either delta changes.
        total: over all of them.
        whole: by name, the tensors that either delta stores whole: the same in every bit, different, or in one alone.
    """

    parameters: Mapping[str, Overlap]
    total: Overlap
    whole: Mapping[str, Agreement]


def compare(
    first: SparseDelta | str | os.PathLike[str],
    second: SparseDelta | str | os.PathLike[str],
    *,
    base: Weights | None = None,
) -> Comparison:
    """Compare two deltas in O(sum of their nnz), with any op, made from one base or from two.

    >>> compare("a.safetensors", "b.safetensors").total.cosine

    Positions need no base. Without one, `same` compares what is stored, which for two exports of one base tells
    exactly; `opposed` and `cosine` take the stored residuals, so they are known for op "add" alone (an entry that its
    residual misses, see `ParameterDelta`, counts with the residual next to it). With the base the tuned values are
    compared, and a residual is wt - w0 in float64, for any op and dtype.

    Args:
        first: a delta, its file or its adapter folder.
        second: another.
        base: the weights that both were made from (see `open_checkpoint`), read at the changed positions.

    Raises:
        CheckpointError: a missing file, or an unreadable base.
        DeltaFormatError: a delta is damaged.
        ParameterMismatchError: shapes or dtypes differ; a parameter of one delta is tied to another one in the other;
            the base lacks a parameter, or has it in another shape or dtype.
        WrongBaseError: the base's values are not those that a delta was made from.
    """
    deltas = load_delta(first), load_delta(second)
    for delta, which in zip(deltas, ("the first delta", "the second delta"), strict=True):
        validate(delta.parameters, which)
    names = list(dict.fromkeys([*deltas[0], *deltas[1]]))
    _check_alike(*deltas)
    weights = None if base is None else open_checkpoint(base).named_as(names)
    parameters, angles = {}, []
    for name in names:
        sides = [_Side.of(name, delta, weights) for delta in deltas if name in delta]
        if len(sides) == 2:
            parameters[name], angle = _meet(*sides)
        else:
            parameters[name], angle = _alone(sides[0], in_first=name in deltas[0])
        angles.append(angle)
    if weights is not None:
        weights.check_unchanged()
    return Comparison(parameters, _total(list(parameters.values()), angles), _whole(*deltas))


@dataclass(frozen=True)
class _Side:
    """One delta's change of one parameter, and its known values.

    Attributes:
        change: the change, on the CPU.
        tuned: wt at its positions, if the base was read.
        residuals: wt - w0 there in float64; None if unknown.
    """

    change: ParameterDelta
    tuned: Tensor | None
    residuals: Tensor | None

    @classmethod
    def of(cls, name: str, delta: SparseDelta, base: Checkpoint | None) -> "_Side":
        change = delta[name].to("cpu")
        if base is None:
            return cls(change, None, change.values.double() if change.op == "add" else None)
        present = names_in_base(name, delta, base)[0]
        origin = gather(base[present].detach().reshape(-1), change.indices.long().to(base[present].device)).cpu()
        change.check_touched(name, digest(origin), base.source)
        tuned = change.tuned_values(origin)
        return cls(change, tuned, tuned.double() - origin.double())


def _check_alike(first: SparseDelta, second: SparseDelta) -> None:
    for name in first.keys() & second.keys():
        here, there = first[name], second[name]
        if (here.shape, here.dtype) != (there.shape, there.dtype):
            raise ParameterMismatchError(
                f"{here.dtype} {here.shape} in the first delta and {there.dtype} {there.shape} in the second",
                parameter=name,
            )
    for changed, tied in ((first, second.tied), (second, first.tied)):
        for alias in changed.keys() & tied.keys():
            raise ParameterMismatchError(
                f"changed by one delta and tied to {tied[alias]} in the other", parameter=alias
            )


def _meet(first: _Side, second: _Side) -> tuple[Overlap, Angle]:
    at_first, at_second = _shared(first.change.indices, second.change.indices)
    angle = angle_between(first.residuals, second.residuals, at_first, at_second)
    bases = first.change.base, second.change.base
    return Overlap(
        first=first.change.nnz,
        second=second.change.nnz,
        shared=at_first.numel(),
        same=_count_same(first, second, at_first, at_second),
        opposed=_count_opposed(first.residuals, second.residuals, at_first, at_second),
        cosine=None if -math.inf in (angle.first, angle.second) else angle.cosine,
        same_base=bases[0].whole == bases[1].whole if bases[0] and bases[1] else None,
    ), angle


def _alone(side: _Side, in_first: bool) -> tuple[Overlap, Angle]:
    count = side.change.nnz
    length = log_length(side.residuals)
    overlap = Overlap(count if in_first else 0, 0 if in_first else count, 0, 0, 0, None, None)
    cosine = None if math.isnan(length) else 0.0
    return overlap, Angle(length, -math.inf, cosine) if in_first else Angle(-math.inf, length, cosine)


def _shared(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices, in each of two sorted vectors of unique positions, of their common positions."""
    if not second.numel():
        return second.long(), second.long()
    slots = torch.searchsorted(second, first).clamp(max=second.numel() - 1)
    hits = second[slots] == first
    return hits.nonzero().squeeze(1), slots[hits]


def _count_same(first: _Side, second: _Side, at_first: Tensor, at_second: Tensor) -> int | None:
    if not at_first.numel():
        return 0
    if first.tuned is not None and second.tuned is not None:
        return int((bits(first.tuned)[at_first] == bits(second.tuned)[at_second]).sum())
    if first.change.op != second.change.op:
        return None
    pairs = zip(_stored(first.change), _stored(second.change), strict=True)
    return int(torch.stack([here[at_first] == there[at_second] for here, there in pairs]).all(0).sum())


def _stored(change: ParameterDelta) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bits of the values, whether an absolute one replaces each, and its bits; each of shape (nnz,)."""
    slots = torch.searchsorted(change.indices, change.exact_indices)
    is_absolute = torch.zeros(change.nnz, dtype=torch.bool)
    absolute = torch.zeros(change.nnz, dtype=torch.int64)
    is_absolute[slots] = True
    absolute[slots] = bits(change.overlay).long()
    return bits(change.values), is_absolute, absolute


def _count_opposed(first: Tensor | None, second: Tensor | None, at_first: Tensor, at_second: Tensor) -> int | None:
    if not at_first.numel():
        return 0
    if first is None or second is None:
        return None
    return int((first[at_first].sign() * second[at_second].sign() < 0).sum())


def _total(overlaps: Sequence[Overlap], angles: Sequence[Angle]) -> Overlap:
    known = [overlap.same_base for overlap in overlaps if overlap.first and overlap.second]
    return Overlap(
        first=sum(overlap.first for overlap in overlaps),
        second=sum(overlap.second for overlap in overlaps),
        shared=sum(overlap.shared for overlap in overlaps),
        same=_sum_known([overlap.same for overlap in overlaps]),
        opposed=_sum_known([overlap.opposed for overlap in overlaps]),
        cosine=joint_cosine(angles),
        same_base=False if False in known else True if known and None not in known else None,
    )


def _sum_known(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _whole(first: SparseDelta, second: SparseDelta) -> dict[str, Agreement]:
    agreements: dict[str, Agreement] = {}
    for name in dict.fromkeys([*first.dense, *second.dense]):
        here, there = first.dense.get(name), second.dense.get(name)
        if here is None or there is None:
            agreements[name] = "second only" if here is None else "first only"
        else:
            agreements[name] = "same" if bit_equal(here.cpu(), there.cpu()) else "different"
    return agreements
