"""Files that appear completely or not at all, even if the process is killed."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rst.files.temporaries import temporary_beside

_NEW = 0o666  # the system removes the bits of the process' umask or the folder
_OWNERS = 0o600  # until it is complete


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is synced and renamed to `path`, otherwise deleted.

    Leftovers of the same file from killed processes are deleted first. A new file gets the permissions of the file it
    replaces; for a link, its target is replaced.

    Raises:
        OSError: the folder is missing, read-only or full, or links lead in a circle; the error names `path`.
    """
    target = _followed(Path(path))
    kept = _permissions(target)
    with temporary_beside(target, mode=_NEW if kept is None else _OWNERS) as temporary:
        yield temporary
        sync_to_disk(temporary)
        if kept is not None:
            temporary.chmod(kept)
        temporary.replace(target)
        sync_to_disk(target.parent)


def _followed(path: Path) -> Path:
    """Return the target of a link, even a missing one; return other paths unchanged."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _permissions(path: Path) -> int | None:
    """Return the permissions of a file; None if it does not exist."""
    try:
        return path.stat().st_mode & 0o777
    except OSError:  # writing will report the error
        return None


def sync_to_disk(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries if a folder can be opened, are on disk."""
    if path.is_dir():
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:  # Windows, which writes entries on its own
            return
    else:
        descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
