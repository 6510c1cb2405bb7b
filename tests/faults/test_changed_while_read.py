"""Another process writes to a file that is mapped: noticed wherever it can be, and no output is made of a mixture."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

from rst import (
    CheckpointError,
    ResidualSparseTrainer,
    RSTConfig,
    combine,
    convert,
    export,
    merge,
    open_checkpoint,
)
from rst.checkpoints.checkpoint import RECORD_FILE, Checkpoint
from rst.operations.compare import compare
from rst.operations.tau_curve import tau_curve
from tests.refusal import refused

BASE = {f"w{number}": torch.full((1000,), float(number)) for number in range(4)}
TUNED = {name: tensor + 0.5 for name, tensor in BASE.items()}


def write(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    os.utime(path, ns=(0, 0))  # clocks of files are coarse
    return path


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(bytes(8))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("change", [cut, overwrite])
def test_a_file_that_changed_since_it_was_opened_is_not_read(tmp_path: Path, suffix: str, change: Any) -> None:
    path = write(BASE, tmp_path / f"base{suffix}")
    opened = open_checkpoint(path)
    opened["w0"]
    change(path)
    with refused(CheckpointError, file=path):
        opened["w1"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_that_changes_in_the_middle_gives_no_output(tmp_path: Path, suffix: str) -> None:
    base, tuned = write(BASE, tmp_path / f"base{suffix}"), write(TUNED, tmp_path / f"tuned{suffix}")
    delta = export(base, tuned)

    def disturb(done: int, total: int) -> None:
        if done == total:
            overwrite(base)

    with refused(CheckpointError, file=base):
        merge(base, delta, tmp_path / f"merged{suffix}", on_progress=disturb)
    write(BASE, base)
    with refused(CheckpointError, file=base):
        export(base, tuned, on_progress=disturb)
    assert {path.name for path in tmp_path.iterdir()} == {base.name, tuned.name}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_replaced_by_another_is_read_as_it_was_opened(tmp_path: Path, suffix: str) -> None:
    path = write(BASE, tmp_path / f"base{suffix}")
    opened = open_checkpoint(path)
    write(TUNED, tmp_path / f"new{suffix}").replace(path)
    assert torch.equal(opened["w1"], BASE["w1"])
    path.unlink()
    assert torch.equal(opened["w2"], BASE["w2"])
    opened.check_unchanged()


def test_a_folder_of_distributed_checkpoints_that_changes_gives_no_output(tmp_path: Path) -> None:
    base = tmp_path / "base"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is one process
        dcp.save(dict(BASE), checkpoint_id=base, no_dist=True)
    (file,) = base.glob("*.distcp")

    def disturb(done: int, total: int) -> None:
        if done == total:
            os.utime(file, ns=(0, 0))

    with refused(CheckpointError, file=file):
        merge(base, export(BASE, TUNED), tmp_path / "merged.safetensors", on_progress=disturb)
    assert not (tmp_path / "merged.safetensors").exists()


@pytest.mark.parametrize("change", [cut, overwrite])
def test_the_base_in_a_trainer_s_record_is_looked_at_too(tmp_path: Path, change: Any) -> None:
    model = nn.Sequential(*(nn.Linear(30, 30) for _ in range(3)))
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    write(model.state_dict(), tmp_path / "model.safetensors")
    record = tmp_path / RECORD_FILE
    torch.save({"rst": trainer.state_dict()}, record)
    os.utime(record, ns=(0, 0))

    def disturb(done: int, total: int) -> None:
        if done < total:
            change(record)

    with refused(CheckpointError, file=record):
        export(None, tmp_path, on_progress=disturb)


ONE = {"w0": BASE["w0"]}
READERS: dict[str, Callable[[Path, Path], object]] = {
    "convert": lambda base, delta: convert(delta, op="replace", base=base),
    "compare": lambda base, delta: compare(delta, delta, base=base),
    "combine": lambda base, delta: combine([delta], [1.0], base=base),
    "tau": lambda base, delta: tau_curve(base, {"w0": TUNED["w0"]}),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_base_that_changes_after_the_last_read_is_noticed(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write(ONE, tmp_path / "base.safetensors")
    export(ONE, {"w0": TUNED["w0"]}).save(tmp_path / "delta.safetensors")
    read, reads = Checkpoint.__getitem__, 0
    last = None

    def read_and_disturb(self: Checkpoint, name: str) -> torch.Tensor:
        nonlocal reads
        tensor = read(self, name)
        if self.source == str(base):
            reads += 1
            if reads == last:
                tensor = tensor.clone()
                overwrite(base)
        return tensor

    monkeypatch.setattr(Checkpoint, "__getitem__", read_and_disturb)
    READERS[reader](base, tmp_path / "delta.safetensors")
    last, reads = reads, 0
    with refused(CheckpointError, file=base):
        READERS[reader](base, tmp_path / "delta.safetensors")
