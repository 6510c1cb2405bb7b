"""A child process that is stopped at the k-th operation on a file: killed, or given an error instead.

Operations are seen by Python's audit hooks (opening for writing, renaming, removing, making folders, changing modes),
by files that count each write that reaches the system and do half of the one they stop at, and by `os.fsync`.
"""

import builtins
import io
import os
import signal
import sys
from collections.abc import Callable, Set
from itertools import count
from pathlib import Path
from typing import Any

import torch

_EVENTS = {"os.rename", "os.mkdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
_REMOVALS = {"os.remove", "os.rmdir"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
Stop = Callable[[str | None], None]


def in_a_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; returns what ended it: 0, minus a signal, or the code of `os._exit`."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            work()
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(point: int, folder: Path, work: Callable[[], object]) -> bool:
    """Run `work` and kill it at operation number `point` below `folder`; False if it came to its end."""

    def kill(_: str | None) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    ended = in_a_child(lambda: _stopped_at(point, folder, _EVENTS | _REMOVALS, kill, work))
    assert ended in (0, -signal.SIGKILL), ended
    return ended != 0


def failing_at(point: int, folder: Path, error: BaseException, work: Callable[[], object]) -> int:
    """Run `work`, in which operation number `point` raises `error`; returns the code that `work` ends with."""

    # a full disk hinders no removal
    events = _EVENTS if isinstance(error, OSError) else _EVENTS | _REMOVALS

    def fail(path: str | None) -> None:
        if isinstance(error, OSError) and path is not None:  # as the system reports it
            raise OSError(error.errno, error.strerror, path)
        raise error

    return in_a_child(lambda: _stopped_at(point, folder, events, fail, work))


def _stopped_at(point: int, folder: Path, events: Set[str], stop: Stop, work: Callable[[], object]) -> None:
    """For a child only: audit hooks stay."""
    operations, original, fsync = count(), io.open, os.fsync

    def touch(path: str | None) -> None:
        if next(operations) == point:
            stop(path)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if (event in events or opens) and str(arguments[0]).startswith(str(folder)):
            touch(str(arguments[0]))

    class CountedFile(io.FileIO):
        def write(self, data: Any) -> int:
            if next(operations) == point:
                super().write(memoryview(data).cast("B")[: len(memoryview(data).cast("B")) // 2])
                stop(None)
            return super().write(data)

    def counted_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        below = isinstance(file, (str, os.PathLike)) and str(file).startswith(str(folder))
        if not below or not set(mode) & set("wax+"):
            return original(file, mode, *arguments, **options)
        raw = CountedFile(file, mode.replace("b", "").replace("t", ""))
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding="utf-8")

    def counted_fsync(descriptor: int) -> None:
        touch(None)
        fsync(descriptor)

    io.open = builtins.open = counted_open  # type: ignore[assignment]
    os.fsync = counted_fsync  # type: ignore[assignment]
    sys.addaudithook(audit)
    work()
