"""Combining several deltas of one base: task arithmetic, TIES and DARE, in O(changed weights)."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint, Weights, open_checkpoint
from rst.delta.file import load_delta
from rst.delta.parameter_delta import BaseDigests, ParameterDelta, gather
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ConfigError, NonFiniteError, WrongBaseError
from rst.numerics.exactness import bits
from rst.numerics.fingerprint import digest
from rst.operations.base_checks import check_common_base, common_dense, names_in_base

Method = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
MajoritySignMethod = Literal["total", "frequency"]
_ELECTING = ("ties", "dare_ties")
Entries = tuple[Tensor, Tensor]
"""Sorted positions and the residuals there, both of shape (nnz,)."""


def combine(
    deltas: Sequence[SparseDelta | str | os.PathLike[str]],
    weights: Sequence[float],
    *,
    method: Method = "linear",
    density: float | None = None,
    majority_sign_method: MajoritySignMethod = "total",
    generator: torch.Generator | None = None,
    base: Weights | None = None,
) -> SparseDelta:
    """Combine deltas of one base, as `peft.utils.merge_utils` combines dense task tensors, in O(sum of their nnz).

    >>> combine(["a.safetensors", "b.safetensors"], [0.5, 0.5], method="ties", density=0.5).save("both.safetensors")

    An entry that a delta leaves alone is a zero of its dense task tensor: it adds nothing, has no vote on the sign and
    is not counted. So every method means here what it means there, but for `density`, the share to keep. PEFT takes it
    of all weights of a tensor, most of which are zeros here, and would prune nothing; here it is of the weights that
    the delta changes, parameter by parameter. (DARE draws independently, so there both are the same.)

    Args:
        deltas: with op "add", or their files or adapter folders.
        weights: one factor for each, any finite number.
        method: "linear" is sum of weight times residual (task arithmetic, Ilharco et al., 2023). "magnitude_prune"
            first keeps the largest residuals, "dare_linear" a random share divided by `density` (Yu et al., 2024).
            "ties" keeps the largest, elects one sign for each weight, and averages the weighted residuals that have it
            (Yadav et al., 2023); "dare_ties" does so with a random share.
        density: share of each parameter's changed entries to keep, in (0, 1]. Needed by all but "linear".
        majority_sign_method: elect by the "total" of the residuals, or by "frequency"; a draw is positive.
        generator: for DARE's draws; None takes torch's global one.
        base: the weights they were made from (see `open_checkpoint`), to put their digests into the result, so that
            merging notices a wrong base again. None leaves them out, as all arithmetic does.

    Returns:
        Residuals in each parameter's dtype, summed in float32 or wider and rounded once. Tensors stored whole are kept
        where all deltas agree on them in every bit.

    Raises:
        CheckpointError: an unreadable base.
        ConfigError: an unknown method, numbers out of range, or not one weight for each delta.
        NonFiniteError: a combined residual exceeds the range of its dtype.
        ParameterMismatchError: an op without residuals; shapes, dtypes or ties that differ; tensors stored whole that
            differ or that one delta lacks (`delta.sparse_only()` leaves them out).
        WrongBaseError: the deltas were made from different bases, or not from `base`.
    """
    _check_settings(len(deltas), weights, method, density, majority_sign_method)
    labelled = {_label(delta, number): load_delta(delta) for number, delta in enumerate(deltas, start=1)}
    loaded = list(labelled.values())
    check_common_base(labelled)
    names = list(dict.fromkeys(name for delta in loaded for name in delta))
    weights_of_base = None if base is None else open_checkpoint(base).named_as(names)
    combined = {}
    for name in names:
        parts = [(delta[name], weight) for delta, weight in zip(loaded, weights, strict=True) if name in delta]
        entries = [_prune(_entries(change), method, density, generator) for change, _ in parts]
        factors = [weight for _, weight in parts]
        sign_method = majority_sign_method if method in _ELECTING else None
        change = _add_up(name, parts[0][0], entries, factors, sign_method)
        if weights_of_base is not None:
            present = names_in_base(name, next(delta for delta in loaded if name in delta), weights_of_base)[0]
            known = [part.base for part, _ in parts if part.base]
            change = _on_base(present, change, known, weights_of_base)
        if change.nnz:
            combined[name] = change
    if weights_of_base is not None:
        weights_of_base.check_unchanged()
    dense = common_dense(labelled)
    tied = {alias: owner for delta in loaded for alias, owner in delta.tied.items()}
    settings = {"method": method, "weights": list(weights), "density": density}
    return SparseDelta(
        combined,
        dense,
        loaded[0].buffers,
        {alias: owner for alias, owner in tied.items() if owner in combined or owner in dense},
        max((delta.base for delta in loaded), key=lambda base: base.weights),
        {"combined": {name: value for name, value in settings.items() if value is not None}},
        loaded[0].coordinates if len({delta.coordinates for delta in loaded}) == 1 else None,
        loaded[0].model_config if all(delta.model_config == loaded[0].model_config for delta in loaded) else None,
    )


def _check_settings(
    count: int, weights: Sequence[float], method: str, density: float | None, majority_sign_method: str
) -> None:
    if not count or count != len(weights):
        raise ConfigError(f"{count} deltas and {len(weights)} weights: give at least one delta, and a weight for each")
    if not all(math.isfinite(weight) for weight in weights):
        raise ConfigError(f"weights={list(weights)}: all must be finite")
    if method not in get_args(Method):
        raise ConfigError(f"method={method!r}: choose one of {list(get_args(Method))}")
    if majority_sign_method not in get_args(MajoritySignMethod):
        choices = list(get_args(MajoritySignMethod))
        raise ConfigError(f"majority_sign_method={majority_sign_method!r}: choose one of {choices}")
    if method == "linear" and density is not None:
        raise ConfigError(f'density={density}: method "linear" keeps every entry; leave it out')
    if method != "linear" and (density is None or not 0 < density <= 1):
        raise ConfigError(f'density={density}: method "{method}" needs the share of changed entries to keep, in (0, 1]')


def _label(delta: SparseDelta | str | os.PathLike[str], number: int) -> str:
    return f"delta {number}" if isinstance(delta, SparseDelta) else f"delta {number} ({os.fspath(delta)})"


def _entries(change: ParameterDelta) -> Entries:
    residuals = change * 1.0  # raises without residuals, and drops zeros
    return residuals.indices, residuals.values.to(torch.promote_types(change.dtype, torch.float32))


def _prune(entries: Entries, method: Method, density: float | None, generator: torch.Generator | None) -> Entries:
    if density is None:
        return entries
    if method.startswith("dare"):
        return _random_share(entries, density, generator)
    return _largest(entries, density)


def _largest(entries: Entries, density: float) -> Entries:
    """Keep the `int(density * nnz)` residuals of largest magnitude; of equal ones, the first."""
    indices, values = entries
    kept = int(density * indices.numel())
    order = values.abs().argsort(descending=True, stable=True)
    places = order[:kept].sort().values
    return indices[places], values[places]


def _random_share(entries: Entries, density: float, generator: torch.Generator | None) -> Entries:
    """Keep each residual with probability `density` and divide it by that, so that the expected change is the same.

    An unchanged weight stays unchanged in either case: this is DARE (Yu et al., 2024) on the dense difference, at the
    cost of the changed entries alone.
    """
    indices, values = entries
    drawn = torch.rand(indices.numel(), generator=generator, device=generator.device if generator else None)
    places = (drawn < density).nonzero().squeeze(1).to(indices.device)
    return indices[places], values[places] / density


def _add_up(
    name: str,
    like: ParameterDelta,
    entries: Sequence[Entries],
    weights: Sequence[float],
    sign_method: MajoritySignMethod | None,
) -> ParameterDelta:
    """Sum weighted entries at common positions; with a sign method, average those of the elected sign."""
    indices, slots = torch.unique(torch.cat([where for where, _ in entries]), return_inverse=True)
    slot_of = slots.split([where.numel() for where, _ in entries])
    tasks = [(slot, values) for slot, (_, values) in zip(slot_of, entries, strict=True)]
    total = tasks[0][1].new_zeros(indices.numel())
    if sign_method is None:
        for (slot, values), weight in zip(tasks, weights, strict=True):
            total[slot] += weight * values  # each index occurs once per task
    else:
        count = torch.zeros_like(total)
        majority = _elect(tasks, torch.zeros_like(total), sign_method)
        for (slot, values), weight in zip(tasks, weights, strict=True):
            agrees = values.sign() == majority[slot]
            total[slot] += weight * values * agrees
            count[slot] += agrees
        total /= count.clamp(min=1)
    residuals = total.to(like.dtype)
    if not residuals.isfinite().all():
        raise NonFiniteError(
            f"a combined residual exceeds the range of {like.dtype}; use smaller weights", parameter=name
        )
    changed = residuals != 0
    return replace(
        like,
        indices=indices[changed],
        values=residuals[changed],
        exact_indices=indices[:0],
        exact_values=residuals[:0],
        base=None,
    )


def _elect(tasks: Sequence[tuple[Tensor, Tensor]], votes: Tensor, sign_method: MajoritySignMethod) -> Tensor:
    for slot, values in tasks:
        votes[slot] += values if sign_method == "total" else values.sign()
    return torch.where(votes >= 0, 1.0, -1.0).to(votes.dtype)


def _on_base(name: str, change: ParameterDelta, known: Iterable[BaseDigests], base: Checkpoint) -> ParameterDelta:
    """Express residuals without a known base as the exact change of a base, with its digests.

    Args:
        name: the parameter's name in `base`.
        change: residuals, meant for plain addition.
        known: the digests that the base must have.
        base: the base.

    Raises:
        WrongBaseError: the base has another digest.
    """
    origin = base[name].detach().reshape(-1)
    found = digest(origin)
    for wanted in known:
        if found != wanted.whole:
            raise WrongBaseError(
                f"not the tensor the deltas were made from (BLAKE3 {found[:12]}, expected {wanted.whole[:12]})",
                file=base.source,
                parameter=name,
            )
    change = change.to(origin.device)
    positions = change.indices.long()
    before = gather(origin, positions)
    after = change.tuned_values(before)
    changed = bits(before) != bits(after)
    digests = BaseDigests(found, digest(before[changed]))
    return ParameterDelta.at(positions[changed], before[changed], after[changed], change.shape, digests)
