"""Temporary files and folders beside their targets, and the removal of those that killed processes left.

The writer holds a lock beside its temporary. A temporary of this machine whose lock is free is a leftover.
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

from rst.files.locks import HeldElsewhereError, Lock

Kind = Literal["file", "folder"]
_TEMPORARY, _LOCK = ".tmp", ".lock"
_LONGEST = 220  # bytes of a name; file systems take 255


@contextmanager
def temporary_beside(target: Path, kind: Kind = "file", mode: int = 0o600) -> Iterator[Path]:
    """Yield a new, empty `.NAME.xyz.tmp` in the folder of `target`; unless renamed by then it is removed.

    Leftovers of the same target are removed first. `mode` applies to files, less the process' umask. A folder belongs
    to its owner alone.

    Raises:
        OSError: the folder is missing, read-only or full; the error names `target`.
    """
    temporary, lock = _new_name(target), None
    try:
        _remove_leftovers(target)
        while lock is None:
            with suppress(HeldElsewhereError):  # another process took it for a leftover before it was locked
                lock = Lock(_lock_of(temporary := _new_name(target)))
        _make(temporary, kind, mode)
        yield temporary
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).name in (temporary.name, _lock_of(temporary).name):
            error.filename = str(target)
        raise
    finally:
        _remove(temporary)
        if lock is not None:
            lock.release()


def target_of(name: str) -> str | None:
    """Return the name of the target of a temporary, or of its lock; None for other names."""
    plain = name.removesuffix(_LOCK)
    if not (name.startswith(".") and plain.endswith(_TEMPORARY)):
        return None
    return plain.removeprefix(".").removesuffix(_TEMPORARY).rpartition(".")[0]


def _new_name(target: Path) -> Path:
    return target.with_name(f"{_start(target)}{secrets.token_hex(4)}{_TEMPORARY}")


def _start(target: Path) -> str:
    """Return the common prefix of a target's temporaries on this machine; for a long name, with its digest."""
    name = target.name
    if len(os.fsencode(name)) > _LONGEST:
        from rst.numerics.fingerprint import digest_text

        name = digest_text(os.fsencode(name).hex())
    return f".{name}.{_machine()}"


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(temporary.name + _LOCK)


@cache
def _machine() -> str:
    """Return six letters that distinguish machines, which may share the folder but not the locks."""
    from rst.numerics.fingerprint import digest_text

    return digest_text(platform.node())[:6]


def _make(path: Path, kind: Kind, mode: int) -> None:
    if kind == "folder":
        path.mkdir(mode=0o700)
    else:
        path.touch(mode=mode, exist_ok=False)


def _remove_leftovers(target: Path) -> None:
    start = _start(target)
    with os.scandir(target.parent) as entries:
        found = {entry.name.removesuffix(_LOCK) for entry in entries if entry.name.startswith(start)}
    for name in found:
        if name.endswith(_TEMPORARY):
            with suppress(OSError, HeldElsewhereError):  # another process holds it, or has removed it
                _remove_unheld(target.with_name(name))


def _remove_unheld(path: Path) -> None:
    lock = Lock(_lock_of(path))
    try:
        if lock.keeps_out:
            _remove(path)
    finally:
        lock.release()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
