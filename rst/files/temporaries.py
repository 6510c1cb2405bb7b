"""Temporary files and folders beside what they will become, and the removal of those that killed processes left.

The one who writes holds a lock on its temporary. One of this machine that nobody holds is a leftover.
"""

import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal

try:
    import fcntl
except ImportError:  # not a Unix: nothing is locked, and leftovers stay
    fcntl = None  # type: ignore[assignment]

Kind = Literal["file", "folder"]


@contextmanager
def temporary_beside(target: Path, kind: Kind = "file") -> Iterator[Path]:
    """Yield a new, empty `.NAME.xyz.tmp` in the folder of `target`; unless renamed by then it is removed.

    Leftovers of the same target are removed first.

    Raises:
        OSError: the folder is missing, read-only or full; the error names `target`.
    """
    descriptor = None
    temporary = _new_name(target)
    try:
        try:
            _remove_leftovers(target)
            descriptor = _make(temporary, kind)
            while not _lock(descriptor, temporary):  # taken for a leftover before it was locked
                os.close(descriptor)
                descriptor = _make(temporary, kind)
            yield temporary
        except OSError as error:
            if error.filename is None or Path(str(error.filename)).name == temporary.name:
                error.filename = str(target)
            raise
    finally:
        _remove(temporary)
        if descriptor is not None:
            os.close(descriptor)


def _new_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{_machine()}{secrets.token_hex(4)}.tmp")


@cache
def _machine() -> str:
    """Six letters that tell machines apart, which may share the folder but not the locks."""
    from rst.numerics.fingerprint import digest_text

    return digest_text(platform.node())[:6]


def _make(path: Path, kind: Kind) -> int:
    if kind == "folder":
        path.mkdir(mode=0o700)
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # taken for a leftover before it was opened
            return _make(path, kind)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)


def _lock(descriptor: int, path: Path) -> bool:
    """Hold the lock; False if another process has removed what it was made for."""
    if fcntl is None:
        return True
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_leftovers(target: Path) -> None:
    if fcntl is None:
        return
    start = f".{target.name}.{_machine()}"
    with os.scandir(target.parent) as entries:
        found = [entry.name for entry in entries if entry.name.startswith(start) and entry.name.endswith(".tmp")]
    for name in found:
        with suppress(OSError):  # somebody holds it, or has removed it
            _remove_unheld(target.with_name(name))


def _remove_unheld(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
