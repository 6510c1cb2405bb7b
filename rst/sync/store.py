"""Where a chain is stored: a folder, or any store that fsspec supports."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from rst.errors import ConfigError
from rst.files.temporaries import temporary_beside
from rst.sync.errors import ChainConflictError, ChainGapError
from rst.sync.lease import lease

Writer = Callable[[Path], object]
LOCK = "publisher.lock"
_PATIENCE = 600  # seconds; other publishers hold the lock while they write a step, which may include an anchor


class Store(Protocol):
    """Files by plain name; each exists completely or not at all."""

    location: str

    def names(self) -> list[str]:
        """Return the names of the files, in no order; a store that does not exist yet has none."""

    def put(self, name: str, write: Writer) -> int:
        """Write a file atomically with `write(path)`, replacing an existing one; return its size in bytes."""

    def fetch(self, name: str) -> AbstractContextManager[Path]:
        """Return a context with a local path of the file's contents. Raises `ChainGapError` if it does not exist."""

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""

    def lock(self) -> AbstractContextManager[None]:
        """Return a context that excludes other publishers. Raises `ChainConflictError` after ten minutes."""


class FolderStore:
    """A folder, local or mounted: files appear by rename, after fsync."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Use `folder`, which the first file put there creates."""
        self.folder = Path(folder)
        self.location = str(folder)

    def names(self) -> list[str]:
        """Return the names of the files."""
        return [entry.name for entry in self.folder.iterdir()] if self.folder.is_dir() else []

    def put(self, name: str, write: Writer) -> int:
        """Write a file; see `Store.put`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / name)
        return (self.folder / name).stat().st_size

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Yield the path of the file itself."""
        path = self.folder / name
        if not path.is_file():
            raise ChainGapError("no such file", file=path)
        yield path

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a lock of the operating system, which is released if the process is killed."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(self.folder / LOCK, timeout=_PATIENCE)
        try:
            held.acquire()
        except Timeout as error:
            raise ChainConflictError(
                f"another publisher has held the lock for {_PATIENCE} s", file=held.lock_file
            ) from error
        try:
            yield
        finally:
            held.release()


class FsspecStore:
    """A path on an fsspec filesystem: files are written locally, then uploaded under their own name.

    An upload may be visible half done if the store does not replace objects atomically (S3 and similar stores do). The
    chain's pointer is written last and names no file before it is complete, and its digest reveals a torn pointer.
    """

    def __init__(self, filesystem: Any, path: str) -> None:
        """Use `path` of an `fsspec.AbstractFileSystem`."""
        self.filesystem, self.path = filesystem, path.rstrip("/")
        self.location = str(filesystem.unstrip_protocol(self.path))

    def names(self) -> list[str]:
        """Return the names of the files, without caching."""
        self.filesystem.invalidate_cache(self.path)
        try:
            with self._answering():
                return [entry.rpartition("/")[2] for entry in self.filesystem.ls(self.path, detail=False)]
        except FileNotFoundError:
            return []

    def put(self, name: str, write: Writer) -> int:
        """Upload a file; see `Store.put`."""
        with _local_folder() as folder:
            local = folder / name
            write(local)
            with self._answering():
                self.filesystem.makedirs(self.path, exist_ok=True)
                self.filesystem.put_file(str(local), f"{self.path}/{name}")
            return local.stat().st_size

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Download to a temporary file."""
        with _local_folder() as folder:
            local = folder / name
            try:
                with self._answering():
                    self.filesystem.get_file(f"{self.path}/{name}", str(local))
            except FileNotFoundError as error:
                raise ChainGapError("no such file", file=f"{self.location}/{name}") from error
            yield local

    def delete(self, name: str) -> None:
        """Delete a file."""
        with self._answering():
            if self.filesystem.exists(f"{self.path}/{name}"):
                self.filesystem.rm_file(f"{self.path}/{name}")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn the store's own errors for not answering into `OSError`, as with a folder."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}", self.location) from error

    def lock(self) -> AbstractContextManager[None]:
        """Hold a lease; after a publisher was killed while holding it, others wait a minute."""
        self.filesystem.makedirs(self.path, exist_ok=True)
        return lease(self.filesystem, f"{self.path}/{LOCK}", _PATIENCE)


def _local_folder() -> AbstractContextManager[Path]:
    """Create a temporary folder, and remove what killed processes left of theirs, which may include whole anchors."""
    return temporary_beside(Path(tempfile.gettempdir()) / "rst-sync", "folder")


def open_store(location: "str | os.PathLike[str] | Store") -> Store:
    """Open a store: a folder's path, a URL such as `s3://bucket/chain` (needs fsspec), or a store as it is.

    Raises:
        ConfigError: a URL, and fsspec or the package for its protocol is not installed.
    """
    if not isinstance(location, (str, os.PathLike)):
        return location
    if "://" not in os.fspath(location):
        return FolderStore(location)
    try:
        filesystem, path = import_module("fsspec.core").url_to_fs(os.fspath(location))
        local = import_module("fsspec.implementations.local").LocalFileSystem
    except (ImportError, ValueError) as error:
        raise ConfigError(f"a URL needs fsspec with support for its protocol ({error})", file=location) from error
    return FolderStore(path) if isinstance(filesystem, local) else FsspecStore(filesystem, path)
