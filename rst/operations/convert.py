"""Converting the form of a change (residuals, tuned values, steps), with the same result bit for bit."""

import os
from dataclasses import replace
from typing import get_args

from torch import Tensor

from rst.checkpoints.checkpoint import Weights, open_checkpoint
from rst.delta.file import load_delta
from rst.delta.parameter_delta import Op, ParameterDelta, gather, stored_op
from rst.delta.sparse_delta import SparseDelta
from rst.delta.validation import validate
from rst.errors import ConfigError
from rst.numerics.fingerprint import digest
from rst.operations.base_checks import names_in_base


def convert(delta: SparseDelta | str | os.PathLike[str], *, op: Op, base: Weights | None = None) -> SparseDelta:
    """Express a delta by another operation. Merged, it gives the same weights bit for bit; nothing is lost either way.

    >>> convert("delta.safetensors", op="replace", base="base.safetensors").save("for_a_server.safetensors")
    >>> SparseDelta.load("delta.safetensors").save("small.safetensors", encoding="packed")  # needs no conversion

    Args:
        delta: the delta, its file or its adapter folder.
        op: "add" for residuals, "replace" for the tuned values, "step" for integer steps, as in `ParameterDelta`.
        base: the weights it was made from (see `open_checkpoint`), read at the changed positions. May be None where
            nothing changes form.

    Returns:
        The converted delta, on the device of the base; what is stored whole stays as it is.

    Raises:
        CheckpointError: an unreadable base.
        ConfigError: an unknown operation, or one that needs a base and has none.
        DeltaFormatError: the delta is damaged.
        ParameterMismatchError: the base lacks a parameter, or has it in another shape or dtype.
        WrongBaseError: the base's values are not those the delta was made from.
    """
    if op not in get_args(Op):
        raise ConfigError(f"op={op!r}: choose one of {list(get_args(Op))}")
    source = load_delta(delta)
    weights = None if base is None else open_checkpoint(base).named_as(source)
    converted = {}
    validate(source.parameters, "delta")
    for name, change in source.parameters.items():
        if change.op == stored_op(op, change.dtype):
            converted[name] = change
        elif weights is None:
            raise ConfigError(f'converting op "{change.op}" to "{op}" needs the base weights', parameter=name)
        else:
            present = names_in_base(name, source, weights)[0]
            converted[name] = _express(name, change, weights[present].detach(), op, weights.source)
    if weights is not None:
        weights.check_unchanged()
    return replace(source, parameters=converted)


def _express(name: str, change: ParameterDelta, base: Tensor, op: Op, source: str) -> ParameterDelta:
    change = change.to(base.device)
    positions = change.indices.long()
    origin = gather(base.reshape(-1), positions)
    change.check_touched(name, digest(origin), source)
    return ParameterDelta.at(positions, origin, change.tuned_values(origin), change.shape, change.base, op)
