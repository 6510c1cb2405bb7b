"""Files that appear whole or not at all, even if the process is killed half way."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rst.files.temporaries import temporary_beside


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is synced and renamed to `path`, else deleted.

    What a killed process has left of the same file is deleted first.

    Raises:
        OSError: the folder is missing, read-only or full; the error names `path`.
    """
    target = Path(path)
    with temporary_beside(target) as temporary:
        yield temporary
        # temporaries are private; a written file gets the permissions any other would.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        sync_to_disk(temporary)
        temporary.replace(target)
        sync_to_disk(target.parent)


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
