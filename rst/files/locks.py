"""Locks between processes: a file beside the locked one, released by the system when its holder is killed."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rst.errors import CheckpointError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class HeldElsewhereError(Exception):
    """Another process holds the lock."""


class Lock:
    """A lock that is held from its creation; on a file system without locks it excludes no one."""

    def __init__(self, file: Path) -> None:
        """Acquire the lock at once.

        Raises:
            HeldElsewhereError: another process holds it, or has just released it.
            OSError: the file cannot be created, or is a link, whose target must not be emptied.
        """
        from filelock import FileLock, Timeout

        file.parent.stat()  # filelock would create a missing folder
        if file.is_symlink():
            raise OSError(errno.ELOOP, "is a link; remove it", str(file))
        self._file = file
        self._held: BaseFileLock | None = FileLock(file, timeout=0, mode=0o600, thread_local=False)
        try:
            self._held.acquire()
        except Timeout as error:
            raise HeldElsewhereError from error
        except NotImplementedError:
            self._held = None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._held = None
        if self._held is not None and not file.exists():  # its last holder has removed it meanwhile
            self._held.release()
            raise HeldElsewhereError

    @property
    def keeps_out(self) -> bool:
        """Whether no other process can hold it now."""
        return self._held is not None

    def release(self) -> None:
        """Release it, and remove its file."""
        if self._held is not None:
            self._held.release()
        with suppress(OSError):  # already open in another process, where such files remain
            self._file.unlink()


@contextmanager
def alone_in(path: Path, lock: Path) -> Iterator[None]:
    """Lock a file or folder, by another file, against other processes that update it.

    Raises:
        CheckpointError: one holds the lock, or the lock's file cannot be created.
    """
    try:
        held = Lock(lock)
    except HeldElsewhereError as error:
        raise CheckpointError("another process is updating it; wait until it has ended", file=path) from error
    except OSError as error:
        raise CheckpointError(f"cannot be locked ({error.strerror})", file=path) from error
    try:
        yield
    finally:
        held.release()
