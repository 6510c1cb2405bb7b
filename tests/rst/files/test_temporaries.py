"""Writing beside another process that takes the temporary for a leftover, and where files cannot be locked."""

import errno
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from rst import SparseDelta, export
from rst.checkpoints.pickle_writer import write_pickle
from rst.files import temporaries

resource = pytest.importorskip("resource")


def delta() -> SparseDelta:
    return export({"w": torch.zeros(3)}, {"w": torch.ones(3)})


def test_a_lock_that_was_taken_for_a_leftover_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acquire, taken = FileLock.acquire, []

    def remove_first(lock: FileLock) -> None:
        acquire(lock)
        if len(taken) < 2:
            (left,) = tmp_path.iterdir()
            left.unlink()
            taken.append(left)

    monkeypatch.setattr(FileLock, "acquire", remove_first)
    delta().save(tmp_path / "x.safetensors")
    assert len(set(taken)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert SparseDelta.load(tmp_path / "x.safetensors") == delta()


def test_leftovers_are_removed_and_what_somebody_writes_is_not(tmp_path: Path) -> None:
    with temporaries.temporary_beside(tmp_path / "x.safetensors") as held:
        left = held.with_name(held.name.replace(".tmp", "0.tmp"))
        left.touch()
        held.with_name(held.name.replace(".tmp", "1.tmp.lock")).touch()
        delta().save(tmp_path / "x.safetensors")
        assert {path.name for path in tmp_path.iterdir()} == {held.name, f"{held.name}.lock", "x.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_file_system_without_locks_keeps_leftovers_and_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_: FileLock) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with temporaries.temporary_beside(tmp_path / "x.safetensors") as held:
        left = held.with_name(held.name.replace(".tmp", "0.tmp"))
    left.touch()
    monkeypatch.setattr(FileLock, "acquire", no_locks)
    delta().save(tmp_path / "x.safetensors")
    assert SparseDelta.load(tmp_path / "x.safetensors") == delta()
    assert {path.name for path in tmp_path.iterdir()} == {left.name, "x.safetensors"}


def test_a_disk_that_fills_up_half_way_is_told_as_the_system_does_for_pickles_too(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011  (its number is looked at)
            write_pickle({"w": torch.zeros(1 << 16)}, tmp_path / "x.pt")
        assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
