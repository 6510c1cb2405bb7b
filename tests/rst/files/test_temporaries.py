"""Writing beside another process that takes the temporary for a leftover, and where files cannot be locked."""

import errno
from pathlib import Path

import pytest
import torch

from rst import SparseDelta, export
from rst.checkpoints.pickle_writer import write_pickle
from rst.files import temporaries

fcntl = pytest.importorskip("fcntl")
resource = pytest.importorskip("resource")


def delta() -> SparseDelta:
    return export({"w": torch.zeros(3)}, {"w": torch.ones(3)})


def test_a_temporary_that_was_taken_for_a_leftover_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = fcntl.flock, []

    def take_first(descriptor: int, operation: int) -> None:
        if len(taken) < 2:
            (temporary,) = tmp_path.iterdir()
            temporary.unlink()
            taken.append(temporary)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", take_first)
    delta().save(tmp_path / "x.safetensors")
    assert len(taken) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert SparseDelta.load(tmp_path / "x.safetensors") == delta()


def test_without_locks_leftovers_stay_and_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporaries, "fcntl", None)
    with temporaries.temporary_beside(tmp_path / "x.safetensors") as temporary:
        left = temporary.with_name(temporary.name.replace(".tmp", "0.tmp"))
        left.touch()
    delta().save(tmp_path / "x.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {left.name, "x.safetensors"}
    monkeypatch.undo()
    delta().save(tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_disk_that_fills_up_half_way_is_told_as_the_system_does_for_pickles_too(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011  (its number is looked at)
            write_pickle({"w": torch.zeros(1 << 16)}, tmp_path / "x.pt")
        assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_was_removed_before_it_was_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = Path.mkdir, []

    def make_and_lose(path: Path, mode: int) -> None:
        make(path, mode)
        made.append(path)
        if len(made) == 1:
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    with temporaries.temporary_beside(tmp_path / "x", "folder") as temporary:
        assert temporary.is_dir()
    assert len(made) == 2
