"""Files that appear whole or not at all, even if the process is killed half way."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rst.files.temporaries import temporary_beside

_NEW = 0o666  # less what the process' umask or the folder takes away, which the system does when it makes a file
_OWNERS = 0o600  # until it is whole


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is synced and renamed to `path`, else deleted.

    What a killed process has left of the same file is deleted first. A file that is replaced gives its permissions to
    the new one; of a link, what it leads to is replaced.

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
    """Where a link leads, also to nothing; other paths as they are."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _permissions(path: Path) -> int | None:
    """Of a file that is there; None of one that is not."""
    try:
        return path.stat().st_mode & 0o777
    except OSError:  # what is wrong with it, writing says
        return None


def sync_to_disk(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries where a folder can be opened, are on the disk."""
    if path.is_dir():
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:  # Windows, which writes entries by itself
            return
    else:
        descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
