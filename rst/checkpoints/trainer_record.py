"""What a trainer leaves in a checkpoint to resume and to export from, read as untrusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rst.checkpoints.nested_state import RECORD_VERSION, TRAINER_RECORD
from rst.errors import ConfigError
from rst.files.strict_json import check_depth, strings, typed

_NAME = (str, type(None))


@dataclass(frozen=True)
class TrainerRecord:
    """`ResidualSparseTrainer.state_dict()`, every part of the kind that it must be.

    Attributes:
        steps: optimiser steps seen.
        threshold: tau at that step; None if the selection has none.
        base: w0 by name.
        buffers: the buffers at the start, by name.
        saved: names stored whole.
        tied: other names of a tensor, to the name it has here.
        name: the base model's, where known.
        revision: the base model's, where known.
        config: the settings, in JSON types.
    """

    steps: int
    threshold: float | None
    base: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    saved: list[str]
    tied: dict[str, str]
    name: str | None
    revision: str | None
    config: dict[str, Any]


def read_trainer_record(state: Any, file: str | None = None) -> TrainerRecord:
    """Check a trainer's state. Raises `ConfigError`, about `file`, if it is none, of another version, or malformed."""
    if not isinstance(state, Mapping):
        raise ConfigError(f"a {type(state).__name__} is no trainer's state", file=file)
    found = state.get("format")
    if not isinstance(found, str) or found != TRAINER_RECORD:
        shown = repr(found[:99]) if isinstance(found, str) else f"a {type(found).__name__}"
        raise ConfigError(f"the trainer's state has the format {shown}, wanted {TRAINER_RECORD!r}", file=file)
    try:
        if typed(state, "version", int) != RECORD_VERSION:
            raise ConfigError(
                f"the trainer's state has version {state['version']}; this library reads {RECORD_VERSION}", file=file
            )
        tied, identity = typed(state, "tied", dict), typed(state, "identity", dict)
        strings([*tied, *tied.values()], "tied")
        threshold = typed(state, "threshold", float, int, type(None))
        return TrainerRecord(
            typed(state, "steps", int),
            None if threshold is None else float(threshold),
            _tensors(state, "base"),
            _tensors(state, "buffers"),
            strings(state["saved"], "saved"),
            tied,
            typed(identity, "name", *_NAME),
            typed(identity, "revision", *_NAME),
            check_depth(typed(state, "config", dict)),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"the trainer's state is malformed ({type(error).__name__}: {error})", file=file) from error


def _tensors(state: Mapping[str, Any], key: str) -> Mapping[str, Tensor]:
    found = state[key]
    if not isinstance(found, Mapping):
        raise TypeError(f"{key} is no mapping of tensors")
    strings(list(found), key)
    if isinstance(found, dict) and not all(
        map(_has_values, found.values())
    ):  # others read a tensor when it is asked for
        raise TypeError(f"{key} is no mapping of tensors with values")
    return found


def _has_values(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
