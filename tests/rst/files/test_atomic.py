"""What has its name is on the disk: synced before it is renamed, and the folder's entry after."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rst import export, merge

BASE, TUNED = {"w": torch.zeros(3), "v": torch.ones(2)}, {"w": torch.ones(3), "v": torch.zeros(2)}


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[int | str]:
    """The inodes that are synced, and the names that are given, in turn."""
    found: list[int | str] = []

    def noting(name: str) -> None:
        original = getattr(Path, name)

        def give(path: Path, target: Path) -> Path:
            found.append(Path(target).name)
            return original(path, target)

        monkeypatch.setattr(Path, name, give)

    monkeypatch.setattr(os, "fsync", lambda descriptor: found.append(os.fstat(descriptor).st_ino))
    noting("replace")
    noting("rename")
    return found


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_a_file(tmp_path: Path, order: list[int | str]) -> None:
    path = tmp_path / "x.safetensors"
    export(BASE, TUNED).save(path)
    assert order == [inode(path), path.name, inode(tmp_path)]


def test_a_folder(tmp_path: Path, order: list[int | str]) -> None:
    save_file(BASE, tmp_path / "base.safetensors")
    out = merge(tmp_path / "base.safetensors", export(BASE, TUNED), tmp_path / "out", max_shard_size=12)
    named = order.index("out")
    written = [inode(path) for path in out.iterdir()]
    assert len(written) == 3
    entries = max(at for at in range(named) if order[at] == inode(out))
    assert {*written} <= {*order[:entries]}
    assert order[named + 1 :] == [inode(tmp_path)]
