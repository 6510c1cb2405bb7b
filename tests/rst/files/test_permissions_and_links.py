"""Who may read what is written, and that links, planted or honest, are followed or refused but never replaced."""

import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rst import CheckpointError, RSTWarning, SparseDelta, export, merge
from rst.files.atomic import atomic_write
from tests.refusal import refused

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions and links as on Unix")


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def delta() -> SparseDelta:
    return export({"w": torch.zeros(3)}, {"w": torch.ones(3)})


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_permissions_that_any_has(tmp_path: Path, umask: int) -> None:
    delta().save(tmp_path / "x.safetensors")
    assert mode(tmp_path / "x.safetensors") == 0o666 & ~umask


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o666, 0o444])
def test_saving_again_keeps_the_permissions(tmp_path: Path, umask: int, kept: int) -> None:
    path = tmp_path / "x.safetensors"
    delta().save(path)
    path.chmod(kept)
    with atomic_write(path) as temporary:
        assert mode(temporary) & 0o077 == 0, "others may not read what is private before it is whole"
        temporary.write_text("new")
    assert (mode(path), path.read_text()) == (kept, "new")


def test_the_process_never_goes_without_its_umask(tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread that makes a file in such a moment would make it for everybody."""
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask is the whole process'"))
    threads = [threading.Thread(target=delta().save, args=(tmp_path / f"{number}.safetensors",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {mode(path) for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "x.safetensors").symlink_to("disk/real.safetensors")  # which is not there yet
    for _ in range(2):
        delta().save(tmp_path / "x.safetensors")
        assert (tmp_path / "x.safetensors").is_symlink()
        assert SparseDelta.load(tmp_path / "disk" / "real.safetensors") == delta()
        assert len(list((tmp_path / "disk").iterdir())) == 1


def test_links_in_a_circle_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").symlink_to("y")
    (tmp_path / "y").symlink_to("x.safetensors")
    with pytest.raises(OSError, match="x.safetensors"):
        delta().save(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").is_symlink()


@pytest.mark.parametrize("length", [200, 221, 255])
def test_names_as_long_as_the_file_system_takes(tmp_path: Path, length: int) -> None:
    path = tmp_path / f"{'x' * (length - 12)}.safetensors"
    for _ in range(2):
        delta().save(path)
    assert SparseDelta.load(path) == delta()
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({"w": torch.zeros(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("planted", ["folder", "file", "journal", "lock"])
def test_a_planted_partial_folder_leads_nowhere(tmp_path: Path, base: Path, planted: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    partial = tmp_path / "tuned.partial"
    if planted == "folder":
        partial.symlink_to(outside)
    elif planted == "lock":
        (tmp_path / ".tuned.partial.lock").symlink_to(outside / "precious")
    else:
        partial.mkdir()
        name = "model.safetensors" if planted == "file" else "rst-journal.jsonl"
        (partial / name).symlink_to(outside / "precious")
    if planted == "lock":
        with pytest.raises(OSError, match="tuned.partial"):
            merge(base, delta(), tmp_path / "tuned")
    else:
        with refused(CheckpointError, file=partial if planted == "folder" else partial / name):
            merge(base, delta(), tmp_path / "tuned")
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "precious"
    assert not (tmp_path / "tuned").exists()


@pytest.fixture
def partial(tmp_path: Path, base: Path) -> Path:
    """What a killed merge has left."""

    def killed(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(base, delta(), tmp_path / "tuned", on_progress=killed)
    return tmp_path / "tuned.partial"


def test_a_partial_folder_of_another_user_is_refused(
    tmp_path: Path, base: Path, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes the journal can write any weights and prove them."""
    monkeypatch.setattr(os, "geteuid", lambda: partial.stat().st_uid + 1)
    before = sorted(path.name for path in partial.iterdir())
    with refused(CheckpointError, partial.stat().st_uid, file=partial):
        merge(base, delta(), tmp_path / "tuned")
    assert sorted(path.name for path in partial.iterdir()) == before


def test_that_a_partial_folder_is_found_is_said(tmp_path: Path, base: Path, partial: Path) -> None:
    with pytest.warns(RSTWarning, match=r"tuned\.partial .*0 of 2"):
        merge(base, delta(), tmp_path / "tuned")


def test_that_a_partial_folder_of_another_job_is_emptied_is_said(tmp_path: Path, base: Path, partial: Path) -> None:
    with pytest.warns(RSTWarning, match=r"tuned\.partial "):
        merge(base, export({"w": torch.zeros(3)}, {"w": torch.full((3,), 2.0)}), tmp_path / "tuned")
    assert torch.equal(load_file(tmp_path / "tuned" / "model.safetensors")["w"], torch.full((3,), 2.0))


def test_a_merge_interrupted_as_the_folder_gets_its_name_goes_on(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            merge(base, delta(), tmp_path / "tuned")
    with pytest.warns(RSTWarning, match=r"tuned\.partial .*2 of 2"):
        merge(base, delta(), tmp_path / "tuned")
    assert sorted(path.name for path in (tmp_path / "tuned").iterdir()) == ["config.json", "model.safetensors"]


def test_an_unfinished_file_with_another_name_elsewhere_is_not_written_into(
    tmp_path: Path, base: Path, partial: Path
) -> None:
    (partial / "model.safetensors").unlink(missing_ok=True)
    (tmp_path / "precious").write_text("precious")
    (partial / "model.safetensors").hardlink_to(tmp_path / "precious")
    merge(base, delta(), tmp_path / "tuned")
    assert (tmp_path / "precious").read_text() == "precious"
    assert torch.equal(load_file(tmp_path / "tuned" / "model.safetensors")["w"], torch.ones(3))
