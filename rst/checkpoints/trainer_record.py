"""The record that a trainer leaves in a checkpoint, to resume and to export from, read as untrusted data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rst.checkpoints.nested_state import RECORD_VERSION, TRAINER_RECORD
from rst.delta.sparse_delta import CoordinatesName
from rst.errors import ConfigError, ParameterMismatchError
from rst.files.strict_json import check_depth, strings, typed
from rst.numerics.kept_places import KeptPlaces

_NAME = (str, type(None))


@dataclass(frozen=True)
class ModulePlace:
    """The place of a checkpoint tensor in a live module: a view of one of the module's tensors.

    Attributes:
        name: the module's tensor.
        shape: shape of the file's tensor.
        strides: strides in the module's tensor, row-major.
        offset: offset in the module's tensor.
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return the file's tensor from the module's. Raises `ParameterMismatchError` if it lies outside."""
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if min(self.shape, default=1) > 0 and last >= tensor.numel():
            raise ParameterMismatchError(
                f"the file's shape {self.shape} does not fit into {tuple(tensor.shape)}", parameter=self.name
            )
        return tensor.contiguous().as_strided(self.shape, self.strides, self.offset)


@dataclass(frozen=True)
class TrainerRecord:
    """The checked parts of `ResidualSparseTrainer.state_dict()`.

    Attributes:
        steps: optimiser steps seen.
        threshold: tau at that step; None if the selection has none.
        base: w0 by name.
        buffers: the buffers at the start, by name.
        saved: names of tensors stored whole.
        tied: other names of a tensor, mapped to its name here.
        name: name of the base model, where known.
        revision: revision of the base model, where known.
        config: the settings, in JSON types.
        places: by name in the checkpoint files, the place in the module of a tensor that differs from the module's own.
        coordinates: "checkpoint" if the names are known to be those of the files.
        ratio: the share that an export keeps; None if the selection has none.
        kept: for parameters not in `base`, by name, the positions where the weights differ from w0, and w0 there.
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
    places: Mapping[str, ModulePlace] = field(default_factory=dict)
    coordinates: CoordinatesName | None = None
    ratio: float | None = None
    kept: Mapping[str, KeptPlaces] = field(default_factory=dict)


def read_trainer_record(state: Any, file: str | None = None) -> TrainerRecord:
    """Check a trainer's state. Raises `ConfigError`, naming `file`, if it is none, malformed, or of another version."""
    if not isinstance(state, Mapping):
        raise ConfigError(f"a {type(state).__name__} is not a trainer's state", file=file)
    found = state.get("format")
    if not isinstance(found, str) or found != TRAINER_RECORD:
        shown = repr(found[:99]) if isinstance(found, str) else f"a {type(found).__name__}"
        raise ConfigError(f"the trainer's state has the format {shown}, expected {TRAINER_RECORD!r}", file=file)
    try:
        if typed(state, "version", int) not in (1, RECORD_VERSION):
            raise ConfigError(
                f"the trainer's state has version {state['version']}; this library reads 1 and {RECORD_VERSION}",
                file=file,
            )
        tied, identity = typed(state, "tied", dict), typed(state, "identity", dict)
        strings([*tied, *tied.values()], "tied")
        threshold = typed(state, "threshold", float, int, type(None))
        return TrainerRecord(
            typed(state, "steps", int),
            None if threshold is None else float(threshold),
            _tensors(state, "base", _has_values),
            _tensors(state, "buffers", _is_tensor),
            strings(state["saved"], "saved"),
            tied,
            typed(identity, "name", *_NAME),
            typed(identity, "revision", *_NAME),
            check_depth(typed(state, "config", dict)),
            {name: _place(place) for name, place in typed(state, "places", dict).items()} if "places" in state else {},
            "checkpoint" if state.get("coordinates") == "checkpoint" else None,
            None if state.get("ratio") is None else typed(state, "ratio", float, int),
            {name: _kept(one) for name, one in typed(state, "kept", dict).items()} if "kept" in state else {},
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"the trainer's state is malformed ({type(error).__name__}: {error})", file=file) from error


def _kept(places: Any) -> KeptPlaces:
    found = _tensors({"kept": places}, "kept", _has_values)
    return KeptPlaces(found["positions"], found["origin"])


def _place(place: Any) -> ModulePlace:
    name, *numbers = typed({"place": place}, "place", list)
    shape, strides, offset = numbers
    sizes = [offset, *shape, *strides]
    if (
        type(name) is not str
        or len(shape) != len(strides)
        or not all(type(n) is int and 0 <= n < 1 << 63 for n in sizes)
    ):
        raise TypeError("a place in a module is a name, a shape, strides and an offset")
    return ModulePlace(name, tuple(shape), tuple(strides), offset)


def _tensors(state: Mapping[str, Any], key: str, kind: Callable[[Any], bool]) -> Mapping[str, Tensor]:
    found = state[key]
    if not isinstance(found, Mapping):
        raise TypeError(f"{key} is not a mapping of tensors")
    strings(list(found), key)
    if isinstance(found, dict) and not all(map(kind, found.values())):  # other mappings read tensors on access
        raise TypeError(f"{key} is not a mapping of tensors with values")
    return found


def _is_tensor(value: Any) -> bool:
    """Return whether it is a tensor; a buffer that only passes through may have any layout."""
    return isinstance(value, Tensor)


def _has_values(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
