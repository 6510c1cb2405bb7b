"""A day's work where only what every system has is at hand: `python -m tests.integration.without_posix FOLDER`.

On Linux it plays Windows as far as that goes: the modules and functions of Unix are gone, nothing that this process has
open or mapped can be renamed, replaced or removed, no folder can be opened, and fsync needs a file open for writing.
"""

import ctypes
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog")
FUNCTIONS = (
    "fork", "forkpty", "register_at_fork", "posix_fadvise", "posix_fallocate", "sched_getaffinity", "sched_setaffinity",
    "fchown", "chown", "getuid", "getpgid", "killpg", "sysconf", "O_NOFOLLOW", "O_DIRECTORY",
)  # fmt: skip
SIGNALS = ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGCHLD")
_LOCKS = ".lock"  # filelock, which does its work in another way there
_open, _system_open, _fsync = io.open, os.open, os.fsync


def play() -> None:
    """Take away what Windows lacks, before `rst` is imported; torch as built for Linux needs it to be imported."""
    import fcntl

    import torch  # noqa: F401

    writable = {os.O_WRONLY, os.O_RDWR}
    flags_of = fcntl.fcntl
    get_flags = fcntl.F_GETFL

    def fsync(descriptor: int) -> None:
        if flags_of(descriptor, get_flags) & os.O_ACCMODE not in writable:
            raise OSError(9, "fsync of a file that is open for reading")
        _fsync(descriptor)

    for module in MODULES:
        sys.modules[module] = None  # type: ignore[assignment]
    for name in FUNCTIONS:
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS:
        delattr(signal, name)
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    os.fsync = fsync
    os.open = _open_files_only  # type: ignore[assignment]
    for name in ("rename", "replace", "unlink", "remove", "rmdir"):
        setattr(os, name, _unless_open(getattr(os, name)))
    os.rename = _unless_there(os.rename)  # type: ignore[assignment]
    ctypes.CDLL = _no_library(ctypes.CDLL)  # type: ignore[assignment,misc]
    io.open = _without_proc  # type: ignore[assignment]


def _open_files_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
    nameless = flags & os.O_TMPFILE == os.O_TMPFILE  # Windows has these too, in another way
    if os.path.isdir(path) and not nameless:  # noqa: PTH112
        raise PermissionError(13, "a folder", path)
    return _system_open(path, flags, *rest, **more)


def _without_proc(file: Any, *rest: Any, **more: Any) -> Any:
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(2, "no such file", str(file))
    return _open(file, *rest, **more)


def _no_library(load: Any) -> Any:
    class Library(load):  # type: ignore[misc]
        def __init__(self, name: Any, *rest: Any, **more: Any) -> None:
            if name is None and not more:  # more: filelock, as on Linux
                raise TypeError("LoadLibrary() argument 1 must be str, not None")
            super().__init__(name, *rest, **more)

    return Library


def _held() -> set[str]:
    """Paths of the files that this process has open or mapped."""
    held = set()
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            held.add(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        except OSError:  # the one that lists them
            continue
    with _open("/proc/self/maps") as maps:
        held |= {parts[5] for line in maps if len(parts := line.rstrip("\n").split(None, 5)) == 6}
    return held


def _unless_open(work: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(work)
    def checked(*paths: Any, **more: Any) -> Any:
        held = _held()
        for path in paths:
            real = os.path.realpath(path)
            used = [name for name in held if name == real or name.startswith(f"{real}/")]
            if used and not str(path).endswith(_LOCKS):
                raise PermissionError(13, f"{used[0]} is in use by this process", str(path))
        return work(*paths, **more)

    return checked


def _unless_there(rename: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(rename)
    def checked(source: Any, target: Any, **more: Any) -> None:
        if os.path.exists(target):  # noqa: PTH110
            raise FileExistsError(17, "exists", str(target))
        rename(source, target, **more)

    return checked


def work(folder: Path) -> None:
    """Every command of the command line, and the training and the verbs of Python."""
    import torch
    from safetensors.torch import load_file, save_file

    import rst
    from rst.cli import main

    def run(*words: object) -> None:
        assert main([str(word) for word in words]) == 0, words

    def same(path: Path) -> bool:
        found = load_file(path)
        return found.keys() == tuned.keys() and all(torch.equal(found[name], tuned[name]) for name in tuned)

    os.chdir(folder)
    torch.manual_seed(0)
    base = {"a": torch.randn(700, 700), "b": torch.randn(5)}  # over a megabyte: what is given back to the system
    tuned = {"a": base["a"].clone(), "b": base["b"] + 1}
    tuned["a"][3] += 1
    for name, weights in {"base": base, "tuned": tuned}.items():
        save_file(weights, f"{name}.safetensors")
        torch.save(weights, f"{name}.pt")
    run("export", "--base", "base.safetensors", "tuned.pt", "-o", "d.safetensors")
    run("export", "--base", "base.pt", "tuned.safetensors", "-o", "d.safetensors", "--force", "--encoding", "packed")
    run("merge", "base.safetensors", "d.safetensors", "-o", "m.safetensors")
    run("merge", "base.safetensors", "d.safetensors", "-o", "m.safetensors", "--force")
    assert same(Path("m.safetensors"))
    run("merge", "base.pt", "d.safetensors", "-o", "m.pt")
    run("merge", "base.safetensors", "d.safetensors", "-o", "m", "--max-shard-size", "1MB")
    assert all(torch.equal(rst.open_checkpoint("m")[name], tuned[name]) for name in tuned)
    assert not Path("m.partial").exists()
    run("verify", "d.safetensors", "--base", "base.pt")
    run("inspect", "d.safetensors", "--html", "d.html")
    run("diff", "d.safetensors", "d.safetensors")
    run("convert", "d.safetensors", "r.safetensors", "--op", "replace", "--base", "base.pt")
    run("combine", "d.safetensors", "d.safetensors", "--weights", "0.5", "0.5", "-o", "c.safetensors")
    for step in ("base", "tuned"):
        run("sync", "publish", "chain", f"{step}.safetensors")
        run("sync", "follow", "chain", "--into", "served.safetensors")
    assert same(Path("served.safetensors"))
    run("sync", "verify", "chain")
    live = torch.nn.Linear(700, 700)
    before = live.weight.detach().clone()
    trainer = rst.ResidualSparseTrainer(live, rst.RSTConfig(threshold=1e-6, base_storage="mmap"))
    with torch.no_grad():
        live.weight[0] += 1
    trainer.export().save("trained.safetensors")
    trained = live.weight.detach().clone()
    with torch.no_grad():
        live.weight.copy_(before)
    rst.SparseDelta.load("trained.safetensors").apply(live)
    assert torch.equal(live.weight, trained)
    wrapped = rst.get_rst_model(torch.nn.Linear(700, 700), rst.RSTConfig(threshold=1e-6))
    wrapped.save_pretrained("adapter")
    wrapped.save_pretrained("adapter")
    left = [str(path) for path in folder.rglob("*") if path.suffix in (".tmp", ".lock", ".partial")]
    assert left in ([], [str(folder / "chain" / "publisher.lock")]), left


if __name__ == "__main__":
    play()
    work(Path(sys.argv[1]))
    print("all done")
