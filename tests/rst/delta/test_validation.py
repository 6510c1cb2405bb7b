"""What a change must satisfy, wherever it comes from; looked at once, and again after it was written to."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import DeltaFormatError, ParameterDelta, SparseDelta, convert, export, merge
from rst.delta.validation import validate
from tests.refusal import refused

BASE = {f"{name}.weight": torch.linspace(-1, 1, 6) for name in "abc"}
TUNED = {name: weights + torch.tensor([0, 0.5, 0, 0, 0.25, 0]) for name, weights in BASE.items()}
NAN = float("nan")
INT32 = torch.int32


def live() -> nn.Module:
    module = nn.Module()
    for name in BASE:
        child = nn.Module()
        child.weight = nn.Parameter(BASE[name].clone())
        module.add_module(name[0], child)
    return module


def delta_with(**parts: Any) -> SparseDelta:
    """Three changes in order but for what is replaced in the second."""
    delta = export(BASE, TUNED)
    return replace(delta, parameters={**delta.parameters, "b.weight": replace(delta["b.weight"], **parts)})


def prepare(delta: SparseDelta, _: Path) -> None:
    delta.prepare(live())


def merge_it(delta: SparseDelta, _: Path) -> None:
    merge(BASE, delta)


def save(delta: SparseDelta, folder: Path) -> None:
    delta.save(folder / "delta.safetensors")


def pack(delta: SparseDelta, folder: Path) -> None:
    delta.save(folder / "delta.safetensors", encoding="packed")


def convert_it(delta: SparseDelta, _: Path) -> None:
    convert(delta, op="step", base=BASE)


USES = [prepare, merge_it, save, pack, convert_it]


def positions(*places: int, dtype: torch.dtype = INT32) -> Tensor:
    return torch.tensor(places, dtype=dtype)


MALFORMED = {
    "op": ({"op": "xor"}, "xor"),
    "residuals of integers": ({"dtype": torch.int32}, "int32"),
    "uncountable": ({"shape": (1 << 40, 1 << 40)}, (1 << 40, 1 << 40)),
    "uncountable by one": ({"shape": (1 << 62, 2)}, (1 << 62, 2)),
    "outside, inside the next": ({"indices": positions(1, 6)}, "indices", 1, 6),
    "below, inside the last": ({"indices": positions(-1, 4)}, "indices", -1, 4),
    "descending": ({"indices": positions(4, 1)}, "indices"),
    "repeated": ({"indices": positions(4, 4)}, "indices"),
    "too many": ({"indices": positions(*range(7))}, "indices", 7, 6),
    "too few": ({"indices": positions(1)}, "values", 2, 1),
    "two-dimensional": ({"indices": positions(1, 4)[None]}, "indices", (1, 2)),
    "16 bits": ({"indices": positions(1, 4, dtype=torch.int16)}, "indices", torch.int16),
    "values of another dtype": ({"values": torch.ones(2, dtype=torch.float64)}, "values", torch.float64),
    "values of integers": ({"values": positions(1, 1)}, "values", torch.int32),
    "NaN": ({"values": torch.tensor([1.0, NAN])}, 1, 2),
    "exact NaN": ({"exact_indices": positions(4), "exact_values": torch.tensor([NAN])}, "exact_values", 1),
    "exact elsewhere": ({"exact_indices": positions(3), "exact_values": torch.ones(1)}, "exact_indices"),
    "exact in the next": ({"exact_indices": positions(7), "exact_values": torch.ones(1)}, "exact_indices", 7),
    "exact alone": ({"exact_indices": positions(4)}, "exact_values", 0, 1),
    "exact of 64 bits": (
        {"exact_indices": positions(4, dtype=torch.int64), "exact_values": torch.ones(1)},
        "exact_indices",
        torch.int64,
        torch.int32,
    ),
    "tuned values NaN": ({"op": "replace", "values": torch.tensor([1.0, NAN])}, "values", 1),
    "exact steps": (
        {"op": "step", "values": positions(1, 1), "exact_indices": positions(4), "exact_values": torch.ones(1)},
        "exact_indices",
        1,
        "step",
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", MALFORMED)
def test_one_malformed_change_among_good_ones_is_named(tmp_path: Path, fault: str, use: Callable[..., None]) -> None:
    parts, *shown = MALFORMED[fault]
    with refused(DeltaFormatError, *shown, parameter="b.weight"):
        use(delta_with(**parts), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_source_is_named() -> None:
    with refused(DeltaFormatError, "indices", 7, file="here", parameter="b.weight"):
        validate(delta_with(indices=positions(1, 7)).parameters, "here")


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("part", ["indices", "values"])
def test_what_is_written_after_the_check_is_checked_again(tmp_path: Path, part: str, use: Callable[..., None]) -> None:
    delta = export(BASE, TUNED)
    delta.save(tmp_path / "good.safetensors")
    for checked in (delta, SparseDelta.load(tmp_path / "good.safetensors")):
        assert all(change.is_checked for change in checked.values())
        getattr(checked["b.weight"], part)[1] = 7 if part == "indices" else NAN
        with refused(DeltaFormatError, parameter="b.weight"):
            use(checked, tmp_path)


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, replace, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_are_checked_for_themselves(clone: Callable[[ParameterDelta], ParameterDelta]) -> None:
    change = export(BASE, TUNED)["b.weight"]
    validate({"b.weight": change}, "here")
    assert change.is_checked
    assert clone(change) == change
    assert not clone(change).is_checked


@torch.inference_mode()
def test_tensors_of_inference_mode_are_checked_every_time(tmp_path: Path) -> None:
    delta = export(BASE, TUNED)
    delta.save(tmp_path / "good.safetensors")
    loaded = SparseDelta.load(tmp_path / "good.safetensors")
    loaded["b.weight"].indices[1] = 7
    with refused(DeltaFormatError, "indices", 7, parameter="b.weight"):
        loaded.prepare(live())


def test_parameters_too_large_to_join_are_checked_one_by_one() -> None:
    origin, target = torch.zeros(2), torch.ones(2)
    size = 1 << 62
    change = ParameterDelta.at(torch.tensor([0, size - 1]), origin, target, (size,), None)
    validate(dict.fromkeys("abc", change), "here")
    outside = replace(change, indices=torch.tensor([0, size]))
    with refused(DeltaFormatError, "indices", size, file="here", parameter="b"):
        validate({"a": change, "b": outside, "c": change}, "here")


def test_every_dtype_and_operation_at_once() -> None:
    changes = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.uint16, torch.bool):
        origin, target = torch.tensor([0, 0, 1]).to(dtype), torch.tensor([1, 1, 0]).to(dtype)
        for op in ("add", "replace", "step"):
            changes[f"{dtype}.{op}"] = ParameterDelta.between("w", origin, target, op=op)
            changes[f"{dtype}.{op} of nothing"] = ParameterDelta.between("w", origin, origin, op=op)
    validate(changes, "here")
    assert all(change.is_checked for change in changes.values())
    validate({}, "here")
