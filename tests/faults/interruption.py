"""A child process that is stopped at the k-th operation on a file: killed, or given an error instead.

Operations are seen by Python's audit hooks (opening for writing, renaming, removing, making folders, changing modes),
by files that count each write that reaches the system and do half of the one they stop at, and by `os.fsync`.
"""

import builtins
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch

_EVENTS = {"os.rename", "os.mkdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
_REMOVALS = {"os.remove", "os.rmdir"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def in_a_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; returns what ended it: 0, minus a signal, or the code of `os._exit`."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(point: int, folder: Path, work: Callable[[], object]) -> bool:
    """Run `work` and kill it at operation number `point` below `folder`; False if it came to its end."""

    def run() -> None:
        with Killing().at(point, folder):
            work()

    ended = in_a_child(run)
    assert ended in (0, -signal.SIGKILL), ended
    return ended != 0


def failing_at(point: int, folder: Path, error: BaseException, work: Callable[[], object]) -> int:
    """Run `work`, in which operation number `point` raises `error`; returns the code that `work` ends with."""

    def run() -> None:
        with Failing(error).at(point, folder):
            work()

    return in_a_child(run)


class Interruption:
    """Stops the operation on a file that `at` says. For a child only: its audit hook stays."""

    events: Set[str] = _EVENTS | _REMOVALS

    def __init__(self) -> None:
        self._point, self._folder, self._operations = -1, "", count()
        self._watch_files()

    @contextmanager
    def at(self, point: int, folder: Path) -> Iterator[None]:
        """Stop operation number `point` below `folder`."""
        self._point, self._folder, self._operations = point, str(folder), count()
        try:
            yield
        finally:
            self._point = -1

    def stop(self, path: str | None) -> None:
        """What to do instead of the operation."""
        raise NotImplementedError

    def _comes_now(self) -> bool:
        return next(self._operations) == self._point

    def _touch(self, path: str | None) -> None:
        if self._comes_now():
            self.stop(path)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if (event in self.events or opens) and str(arguments[0]).startswith(self._folder):
            self._touch(str(arguments[0]))

    def _watch_files(self) -> None:
        interruption, original, fsync = self, io.open, os.fsync

        class CountedFile(io.FileIO):
            def write(self, data: Any) -> int:
                if interruption._comes_now():
                    super().write(memoryview(data).cast("B")[: len(memoryview(data).cast("B")) // 2])
                    interruption.stop(None)
                return super().write(data)

        def counted_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            below = isinstance(file, (str, os.PathLike)) and str(file).startswith(self._folder)
            if self._point < 0 or not below or not set(mode) & set("wax+"):
                return original(file, mode, *arguments, **options)
            raw = CountedFile(file, mode.replace("b", "").replace("t", ""))
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding="utf-8")

        def counted_fsync(descriptor: int) -> None:
            self._touch(None)
            fsync(descriptor)

        io.open = builtins.open = counted_open  # type: ignore[assignment]
        os.fsync = counted_fsync  # type: ignore[assignment]
        sys.addaudithook(self._audit)


class Killing(Interruption):
    """Kills the process."""

    def stop(self, path: str | None) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Failing(Interruption):
    """Raises an error: a full disk, which hinders no removal, or Ctrl-C."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        if isinstance(error, OSError):
            self.events = _EVENTS
        super().__init__()

    def stop(self, path: str | None) -> None:
        if isinstance(self._error, OSError) and path is not None:  # as the system reports it
            raise OSError(self._error.errno, self._error.strerror, path)
        raise type(self._error)(*self._error.args)
