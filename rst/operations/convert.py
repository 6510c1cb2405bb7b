"""Converting the form of a change (residuals, tuned values, steps), with the same result bit for bit."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint, Weights, open_checkpoint
from rst.delta.file import load_delta
from rst.delta.parameter_delta import ParameterDelta, WantedOp, check_op, stored_op
from rst.delta.sparse_delta import SparseDelta
from rst.delta.validation import validate
from rst.errors import ConfigError
from rst.operations.base_checks import names_in_base
from rst.operations.forms import express, smallest_op


def convert(delta: SparseDelta | str | os.PathLike[str], *, op: WantedOp, base: Weights | None = None) -> SparseDelta:
    """Express a delta by another operation. Merged, it gives the same weights bit for bit; nothing is lost either way.

    >>> convert("delta.safetensors", op="replace", base="base.safetensors").save("for_a_server.safetensors")
    >>> SparseDelta.load("delta.safetensors").save("small.safetensors", encoding="packed")  # needs no conversion

    Args:
        delta: the delta, its file or its adapter folder.
        op: "add" for residuals, "replace" for the tuned values, "step" for integer steps, as in `ParameterDelta`;
            "smallest" for whichever of them takes the fewest bytes with the encoding "packed".
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
    check_op(op, get_args(WantedOp))
    source = load_delta(delta)
    weights = None if base is None else open_checkpoint(base).named_as(source)
    converted = {}
    validate(source.parameters, "delta")
    if op == "smallest":
        if weights is None:
            raise ConfigError('op="smallest" tries every operation, for which it needs the base weights')
        op = smallest_op(_with_base(source, weights), source.nnz, weights.source)
    for name, change in source.parameters.items():
        if change.op == stored_op(op, change.dtype):
            converted[name] = change
        elif weights is None:
            raise ConfigError(f'converting op "{change.op}" to "{op}" needs the base weights', parameter=name)
        else:
            converted[name] = express(name, change, _tensor(name, source, weights), op, weights.source)
    if weights is not None:
        weights.check_unchanged()
    return replace(source, parameters=converted)


def _with_base(delta: SparseDelta, base: Checkpoint) -> Iterator[tuple[str, ParameterDelta, Tensor]]:
    for name, change in delta.items():
        yield name, change, _tensor(name, delta, base)


def _tensor(name: str, delta: SparseDelta, base: Checkpoint) -> Tensor:
    return base[names_in_base(name, delta, base)[0]].detach()
