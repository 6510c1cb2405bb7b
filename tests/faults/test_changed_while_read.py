"""Another process writes to a file that is mapped: noticed wherever it can be, and no output is made of a mixture."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rst import CheckpointError, export, merge, open_checkpoint
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
