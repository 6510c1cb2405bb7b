"""Checks that a base belongs to a delta, by names, shapes and dtypes, and that several deltas have a common base."""

import warnings
from collections.abc import Mapping

from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint
from rst.delta.cast_advice import cast_advice
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ParameterMismatchError, RSTWarning, WrongBaseError
from rst.numerics.exactness import bit_equal


def names_in_base(name: str, delta: SparseDelta, base: Checkpoint) -> list[str]:
    """Return the names that a base has for a changed parameter, which may be tied.

    Raises:
        ParameterMismatchError: the base lacks it, or has it in another shape or dtype.
    """
    change = delta[name]
    present = [candidate for candidate in delta.names_of(name) if candidate in base]
    if not present:
        raise ParameterMismatchError(
            "the delta changes it, but the base has no such tensor", file=base.source, parameter=name
        )
    for candidate in present:
        tensor = base.outline(candidate)
        if (tuple(tensor.shape), tensor.dtype) != (change.shape, change.dtype):
            cast = cast_advice(change, tuple(tensor.shape), tensor.dtype)
            raise ParameterMismatchError(
                f"the base has {tensor.dtype} {tuple(tensor.shape)}, but the delta is for {change.dtype} "
                f"{change.shape}{cast}",
                file=base.source,
                parameter=candidate,
            )
    return present


def warn_if_trained_quantized(delta: SparseDelta, stacklevel: int) -> None:
    """Warn (`RSTWarning`) that a delta trained beside a quantised base is about to be added to float weights."""
    if delta.base.quantized is not None:
        warnings.warn(
            f"trained beside a base quantised by {delta.base.quantized}: {delta.nnz} residuals are added to float "
            "weights, whose outputs are not those that were trained; compare them on your data, or serve the delta on "
            "the quantised base",
            RSTWarning,
            stacklevel=stacklevel + 1,
        )


def check_common_base(deltas: Mapping[str, SparseDelta]) -> None:
    """Compare the deltas where two of them change the same parameter; a base is unknown after arithmetic, and passes.

    Args:
        deltas: deltas by their names in messages.

    Raises:
        ParameterMismatchError: shapes or dtypes differ, or a name is tied to another parameter in only one of them.
        WrongBaseError: digests of the base differ.
    """
    first: dict[str, str] = {}
    for label, delta in deltas.items():
        for name in delta:
            if name in first:
                _check_alike(name, first[name], label, deltas)
            else:
                first[name] = label
    for label, delta in deltas.items():
        for alias, owner in delta.tied.items():
            if alias in first:
                raise ParameterMismatchError(
                    f"cannot combine {first[alias]}, which changes it, and {label}, where it is tied to {owner}",
                    parameter=alias,
                )


def common_dense(deltas: Mapping[str, SparseDelta]) -> dict[str, Tensor]:
    """Return the tensors stored whole, which every delta must store, with the same bits.

    Raises:
        ParameterMismatchError: a delta lacks one of them, or they differ.
    """
    (first, reference), *others = deltas.items()
    for label, delta in others:
        for name in sorted(reference.dense.keys() | delta.dense.keys()):
            here, there = reference.dense.get(name), delta.dense.get(name)
            if here is None or there is None or not bit_equal(here.cpu(), there.cpu()):
                what = "differs" if here is not None and there is not None else "is in one alone"
                raise ParameterMismatchError(
                    f"cannot combine {first} and {label}: it is stored whole and {what}; "
                    "take sparse_only() of each first (--sparse-only), and choose such tensors yourself",
                    parameter=name,
                )
    return dict(reference.dense)


def _check_alike(name: str, first: str, label: str, deltas: Mapping[str, SparseDelta]) -> None:
    here, there = deltas[label][name], deltas[first][name]
    if (here.shape, here.dtype) != (there.shape, there.dtype):
        raise ParameterMismatchError(
            f"cannot combine {first} and {label}: {there.dtype} {there.shape} in the first and "
            f"{here.dtype} {here.shape} in the second",
            parameter=name,
        )
    if here.base and there.base and here.base.whole != there.base.whole:
        raise WrongBaseError(
            f"cannot combine {_based(first, deltas)} and {_based(label, deltas)}: they were made from different bases "
            f"(BLAKE3 {there.base.whole[:12]} and {here.base.whole[:12]})",
            parameter=name,
        )


def _based(label: str, deltas: Mapping[str, SparseDelta]) -> str:
    name = deltas[label].base.name
    return f"{label} (base {name})" if name else label
