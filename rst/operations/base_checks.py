"""The base that several deltas have in common: whether it is one, and what they all store whole beside it."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint
from rst.delta.parameter_delta import BaseDigests, ParameterDelta, gather
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ParameterMismatchError, WrongBaseError
from rst.numerics.exactness import bit_equal, bits
from rst.numerics.fingerprint import digest
from rst.operations.base_lookup import check_fits


def check_common_base(deltas: Mapping[str, SparseDelta]) -> None:
    """Compare the deltas wherever two of them change one parameter; a base is unknown after arithmetic, and passes.

    Args:
        deltas: by what to call them in messages.

    Raises:
        ParameterMismatchError: shapes or dtypes differ, or a name is tied to another parameter in one of them only.
        WrongBaseError: digests of the base differ.
    """
    first: dict[str, str] = {}
    for label, delta in deltas.items():
        for name in delta:
            _check_alike(name, label, delta, first.setdefault(name, label), deltas)
    for label, delta in deltas.items():
        for alias, owner in delta.tied.items():
            if alias in first:
                raise ParameterMismatchError(
                    f"cannot combine {first[alias]} and {label}: {alias}, changed by the first, is tied to {owner} in "
                    "the second"
                )


def common_dense(deltas: Mapping[str, SparseDelta]) -> dict[str, Tensor]:
    """The tensors stored whole, which every delta must store, with the same bits.

    Raises:
        ParameterMismatchError: one is missing somewhere, or differs.
    """
    (first, reference), *others = deltas.items()
    for label, delta in others:
        for name in sorted(reference.dense.keys() | delta.dense.keys()):
            here, there = reference.dense.get(name), delta.dense.get(name)
            if here is None or there is None or not bit_equal(here.cpu(), there.cpu()):
                what = "differs" if here is not None and there is not None else "is in one alone"
                raise ParameterMismatchError(
                    f"cannot combine {first} and {label}: {name} is stored whole and {what}; "
                    "take sparse_only() of each first (--sparse-only), and choose such tensors yourself"
                )
    return dict(reference.dense)


def on_base(name: str, change: ParameterDelta, known: Iterable[BaseDigests], base: Checkpoint) -> ParameterDelta:
    """Express residuals that no base was read for as the exact change of a base, with its digests.

    Args:
        name: the parameter's name in `base`.
        change: residuals, meant for plain addition.
        known: what the base's digests must be.
        base: the base.

    Raises:
        ParameterMismatchError: the base has the parameter in another shape or dtype.
        WrongBaseError: it has another digest.
    """
    check_fits(name, change, base)
    origin = base[name].detach().reshape(-1)
    found = digest(origin)
    for wanted in known:
        if found != wanted.whole:
            raise WrongBaseError(
                f"{name} is not the tensor the deltas were made from (BLAKE3 {found[:12]}, wanted {wanted.whole[:12]})",
                file=base.source,
            )
    change = change.to(origin.device)
    positions = change.indices.long()
    before = gather(origin, positions)
    after = change.tuned_values(before)
    moved = bits(before) != bits(after)
    digests = BaseDigests(found, digest(before[moved]))
    return ParameterDelta.at(positions[moved], before[moved], after[moved], change.shape, digests)


def _check_alike(name: str, label: str, delta: SparseDelta, first: str, deltas: Mapping[str, SparseDelta]) -> None:
    here, there = delta[name], deltas[first][name]
    if (here.shape, here.dtype) != (there.shape, there.dtype):
        raise ParameterMismatchError(
            f"cannot combine {first} and {label}: {name} is {there.dtype} {there.shape} in the first and "
            f"{here.dtype} {here.shape} in the second"
        )
    if here.base and there.base and here.base.whole != there.base.whole:
        raise WrongBaseError(
            f"cannot combine {_based(first, deltas)} and {_based(label, deltas)}: they were made from different bases "
            f"(BLAKE3 of {name}: {there.base.whole[:12]} and {here.base.whole[:12]})"
        )


def _based(label: str, deltas: Mapping[str, SparseDelta]) -> str:
    name = deltas[label].base.name
    return f"{label} (base {name})" if name else label
