"""Locks between processes: a file beside what is locked, which the system gives back when its holder is killed."""

import errno
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class HeldElsewhereError(Exception):
    """Another process holds the lock."""


class Lock:
    """A lock that is held from here on; on a file system without locks it keeps nobody out."""

    def __init__(self, file: Path) -> None:
        """Take it at once.

        Raises:
            HeldElsewhereError: another process has it, or has just given it back.
            OSError: the file cannot be made, or is a link, which might lead to what must not be emptied.
        """
        from filelock import FileLock, Timeout

        file.parent.stat()  # filelock may make what is missing
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
        if self._held is not None and not file.exists():  # its last holder has removed it under our hands
            self._held.release()
            raise HeldElsewhereError

    @property
    def keeps_out(self) -> bool:
        """Whether nobody else can hold it now."""
        return self._held is not None

    def release(self) -> None:
        """Give it back, and remove its file."""
        if self._held is not None:
            self._held.release()
        with suppress(OSError):  # open in another process already, where such a file stays
            self._file.unlink()
