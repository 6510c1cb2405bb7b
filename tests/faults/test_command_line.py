"""What stops a command ends in one sentence, an exit code, and no leftovers: a full disk, Ctrl-C, a folder to read."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rst import export
from rst.cli import main
from tests.faults.interruption import failing_at
from tests.rst.cli.conftest import Ran, is_one_sentence

pytestmark = pytest.mark.slow

SIZE = 3000  # little enough that BLAKE3 starts no threads, which a fork would lose
COMMANDS = {
    "export": ("export", "tuned.safetensors", "--base", "base.safetensors", "-o", "out.safetensors"),
    "export packed": ("export", "tuned.pt", "--base", "base.pt", "-o", "out.safetensors", "--encoding", "packed"),
    "merge": ("merge", "base.safetensors", "delta.safetensors", "-o", "out.safetensors"),
    "merge pickles": ("merge", "base.pt", "delta.safetensors", "-o", "out.pt"),
    "merge into shards": ("merge", "base.safetensors", "delta.safetensors", "-o", "out"),
    "convert": ("convert", "delta.safetensors", "out.safetensors", "--op", "replace", "--base", "base.safetensors"),
    "task vector": ("convert", "delta.safetensors", "out.safetensors", "--to", "task-vector"),
    "publish": ("sync", "publish", "out", "base.safetensors"),
}


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"w": torch.randn(SIZE, generator=torch.Generator().manual_seed(0)), "v": torch.ones(3)}
    tuned = {"w": base["w"] * 1.5, "v": base["v"]}
    for name, state in (("base", base), ("tuned", tuned)):
        save_file(state, f"{name}.safetensors")
        torch.save(state, f"{name}.pt")
    export(base, tuned).save("delta.safetensors")


def run(words: Sequence[str], before: Callable[[], object] | None = None) -> Ran:
    """`rst` in a process of its own, which does `before` first."""
    # coverage writes a file of its own at the end, which a limit on files would stop
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    words = [sys.executable, "-m", "rst", *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, preexec_fn=before, env=unmeasured)
    return Ran(done.returncode, done.stdout, done.stderr)


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("command", ["export packed", "merge", "merge pickles", "merge into shards"])
def test_a_file_that_cannot_grow(tmp_path: Path, command: str) -> None:
    limit = 4000  # bytes of one file: the system then refuses to write more

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ran = run(COMMANDS[command], small_files_only)
    assert is_one_sentence(ran), ran
    assert "out" in ran.err
    assert os.strerror(errno.EFBIG) in ran.err
    assert not leftovers(tmp_path)
    assert not [path for path in tmp_path.glob("out*") if path.is_file()]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_refuses(tmp_path: Path, capfd: Any, command: str, code: int) -> None:
    error = OSError(code, os.strerror(code))
    # The folder is asked for first, which changes nothing where it is; that of the chain is made, and tried again.
    first = 2 if command == "publish" else 1
    assert failing_at(first, tmp_path, error, lambda: os._exit(main(COMMANDS[command]))) == 2
    ran = Ran(2, *capfd.readouterr())
    assert is_one_sentence(ran), ran
    assert "out" in ran.err
    assert os.strerror(code) in ran.err
    assert not leftovers(tmp_path)


HEED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # background jobs inherit to ignore it
AMID_AN_IMPORT = """
import os, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch._C":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""
AT_EXIT = "import atexit, os; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"


def merging(before: str = "", after: str = "") -> "subprocess.Popen[str]":
    command = "import rst.cli, sys\nprint('ready', flush=True)\ncode = rst.cli.main()"
    script = f"{HEED}\n{before}\n{command}\n{after}\nsys.exit(code)"
    words = [sys.executable, "-c", script, *COMMANDS["merge"]]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("wait", [0.4, 1.0])
def test_ctrl_c(tmp_path: Path, wait: float) -> None:
    process = merging()
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode in (0, 130), (process.returncode, err)  # it may have been done
    if process.returncode == 130:
        assert err == "error: interrupted; no file was left half written\n"
        assert not (tmp_path / "out.safetensors").exists()
    assert not leftovers(tmp_path)


def test_ctrl_c_while_torch_is_imported() -> None:
    process = merging(before=AMID_AN_IMPORT, after="print('torch' in sys.modules)")
    out, err = process.communicate(timeout=300)
    assert process.returncode in (0, 130), (process.returncode, err)
    assert out.endswith("True\n")  # an exception amid the set-up of its extension modules may abort the process


def test_ctrl_c_when_the_work_is_done(tmp_path: Path) -> None:
    process = merging(before=AT_EXIT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, "Interrupt" in err) == (0, False)
    assert (tmp_path / "out.safetensors").exists()
