"""A task vector is the residuals, dense, under their names."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from rst import (
    ConfigError,
    NotCarriedError,
    ParameterDelta,
    ParameterMismatchError,
    SparseDelta,
    export,
    to_task_vector,
)
from tests.refusal import refused

BASE = {"a": torch.ones(3, 4), "b": torch.ones(5).bfloat16(), "same": torch.ones(2)}
TUNED = {"a": torch.ones(3, 4), "b": torch.ones(5).bfloat16() * 2, "same": torch.ones(2)}
TUNED["a"][1, 2] = 3.5


def test_differences_of_what_changed(tmp_path: Path) -> None:
    delta = export(BASE, TUNED)
    assert to_task_vector(delta, tmp_path / "t.safetensors") == {}
    vector = load_file(tmp_path / "t.safetensors")
    assert vector.keys() == {"a", "b"}
    for name, tensor in vector.items():
        assert tensor.dtype == BASE[name].dtype
        assert torch.equal(tensor, TUNED[name] - BASE[name])


def test_steps_and_tuned_values_need_the_base(tmp_path: Path) -> None:
    for op in ("step", "replace"):
        delta = export(BASE, TUNED, op=op)
        with refused(ConfigError, op, "add", parameter="a"):
            to_task_vector(delta, tmp_path / "t.safetensors")
        delta.save(tmp_path / "d.safetensors")
        to_task_vector(tmp_path / "d.safetensors", tmp_path / "t.safetensors", base=BASE)
        assert torch.equal(load_file(tmp_path / "t.safetensors")["a"], TUNED["a"] - BASE["a"])


def test_what_has_no_difference_is_refused_or_left_out(tmp_path: Path) -> None:
    base = {**BASE, "codes": torch.zeros(3, dtype=torch.int8)}
    tuned = {**TUNED, "codes": torch.ones(3, dtype=torch.int8), "head": torch.ones(2)}
    delta = export(base, tuned)
    with refused(NotCarriedError, "head", "codes", "torch.int8", file="t.safetensors"):
        to_task_vector(delta, tmp_path / "t.safetensors")
    assert list(tmp_path.iterdir()) == []
    left_out = to_task_vector(delta, tmp_path / "t.safetensors", partial=True)
    assert left_out.keys() == {"head", "codes"}
    assert load_file(tmp_path / "t.safetensors").keys() == {"a", "b"}


def test_a_shape_that_only_a_small_file_claims_is_not_written_out(tmp_path: Path) -> None:
    one = torch.zeros(1, dtype=torch.int64)
    empty = torch.empty(0)
    claimed = ParameterDelta(one, torch.ones(1), (1 << 33,), torch.float32, one[:0], empty, None, "add")
    SparseDelta({"w": claimed}).save(tmp_path / "x.safetensors")
    with refused(ConfigError, 4 << 33):
        to_task_vector(tmp_path / "x.safetensors", tmp_path / "tv.safetensors")
    with refused(ParameterMismatchError, "(8589934592,)", "(3,)", parameter="w"):
        to_task_vector(tmp_path / "x.safetensors", tmp_path / "tv.safetensors", base={"w": torch.zeros(3)})
    with refused(ParameterMismatchError, parameter="w"):
        to_task_vector(tmp_path / "x.safetensors", tmp_path / "tv.safetensors", base={"v": torch.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
