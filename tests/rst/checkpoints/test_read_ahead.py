"""Reading ahead: the next tensor is asked for while the caller works on one, whatever the caller does then."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import rst.checkpoints.read_ahead as module
from rst import CheckpointError, export, merge, open_checkpoint
from rst.checkpoints.read_ahead import read_ahead

LARGE = 1 << 18  # float32 weights, a MiB


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {"a": torch.ones(LARGE), "b": torch.ones(8), "c": torch.full((LARGE,), 2.0), "d": torch.zeros(LARGE)}
    save_file(tensors, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seen: list[float] = []

    def fetch(tensor: Tensor) -> None:
        seen.append(float(tensor[0]))

    monkeypatch.setattr(module, "fetch", fetch)
    return seen


def test_large_tensors_of_files_are_fetched_and_others_left(file: Path, fetched: list[float]) -> None:
    weights = open_checkpoint(file)
    assert list(read_ahead([*"abcd", "elsewhere"], weights, {"c": torch.ones(LARGE)})) == [*"abcd", "elsewhere"]
    assert fetched == [2.0, 0.0]


def test_a_caller_that_stops_or_fails_leaves_nothing_running(file: Path) -> None:
    names = read_ahead([*"abcd"], open_checkpoint(file))
    assert next(names) == "a"
    names.close()  # type: ignore[attr-defined]
    assert not list(names)


def test_exports_and_merges_read_ahead(file: Path, fetched: list[float], tmp_path: Path) -> None:
    tuned = {name: tensor + 1 for name, tensor in open_checkpoint(file).items()}
    delta = export(file, tuned)
    assert fetched == [2.0, 0.0]
    merge(file, delta, tmp_path / "merged.safetensors")
    assert fetched == [2.0, 0.0] * 2
    export(file, tuned, ratio=0.5)
    assert fetched == [2.0, 0.0] * 5  # two passes to find the share, and one


@pytest.mark.parametrize("shorter", ["weights.safetensors", "tuned.safetensors"])
def test_a_file_that_is_truncated_meanwhile_is_an_error(file: Path, shorter: str) -> None:
    """And no SIGBUS, which making a tensor of what is no longer there would be."""
    tuned = file.with_name("tuned.safetensors")
    save_file({name: tensor + 1 for name, tensor in open_checkpoint(file).items()}, tuned)

    def truncate(*_: int) -> None:
        os.truncate(file.with_name(shorter), 4096)

    with pytest.raises(CheckpointError) as caught:
        export(file, tuned, on_progress=truncate)
    assert caught.value.file == str(file.with_name(shorter))


def test_exports_work_as_python_exits(file: Path) -> None:
    script = """
import atexit, sys, rst
rst.export(sys.argv[1], sys.argv[1])
atexit.register(lambda: print(rst.export(sys.argv[1], sys.argv[1]).nnz))
"""
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_what_is_fetched_is_what_is_read(file: Path) -> None:
    weights = open_checkpoint(file)
    for name in read_ahead(list(weights), weights):
        weights.release(name)
    assert torch.equal(weights["c"], torch.full((LARGE,), 2.0))


@pytest.mark.filterwarnings("ignore::rst.RSTWarning")
def test_tensors_that_are_cast_are_fetched_as_the_file_has_them(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    monkeypatch.setattr(module, "fetch", lambda tensor: seen.append(tensor.dtype))
    base = {name: tensor.bfloat16() for name, tensor in open_checkpoint(file).items()}
    export(base, file, dtype=torch.bfloat16)
    assert seen == [torch.float32] * 2
