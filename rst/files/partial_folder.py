"""A visible folder of large files that a killed process leaves incomplete, and the next one continues.

`OUTPUT.partial` holds the files and a journal with one JSON object per line: the digest of the whole job (inputs,
settings, this library's version), then name and digest of each finished file. Only files that these prove are reused.
"""

import json
import os
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from rst.errors import CheckpointError, RSTError, RSTWarning
from rst.files.atomic import sync_to_disk
from rst.files.locks import HeldElsewhereError, Lock
from rst.files.temporaries import target_of
from rst.numerics.fingerprint import TEXT_DIGITS, digest_file, digest_text
from rst.version import __version__

_JOURNAL = "rst-journal.jsonl"


def job_digest(settings: Any, files: Sequence[Path]) -> str:
    """Digest settings in JSON, this library's version, and the files' names, sizes and times of last change.

    The contents of the files are not read, because that would be half of the work to be saved.
    """
    stamps = []
    for path in files:
        found = path.stat()
        stamps.append([str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns])
    return digest_text(json.dumps([__version__, settings, stamps], sort_keys=True))


class PartialFolder:
    """The unfinished files of one output. An error of this library removes them, as a second attempt would fail too.

    Finding an existing folder is reported (`RSTWarning`): anyone who can write beside the output may have put it there.

    >>> with PartialFolder(Path("tuned"), job, ["a.safetensors"]) as partial:
    ...     if not partial.has("a.safetensors"):
    ...         write(partial.path / "a.safetensors")
    ...         partial.finish("a.safetensors")
    ...     partial.publish()
    """

    def __init__(self, output: Path, job: str, files: Collection[str]) -> None:
        """Create the folder beside `output`, or continue in it if its journal belongs to the same job.

        Args:
            output: the output to create.
            job: a digest of everything that determines the files.
            files: the names of all files to be written.

        Raises:
            CheckpointError: another process is at work there, or the folder has files that no journal explains, or
                links, which lead elsewhere, or is another user's.
        """
        self._output = output.resolve()
        self.path = self._output.with_name(f"{self._output.name}.partial")
        try:  # beside the folder, which is renamed while the lock is held
            self._lock = Lock(self.path.with_name(f".{self.path.name}.lock"))
        except HeldElsewhereError as error:
            raise CheckpointError("another process is writing it", file=self.path) from error
        try:
            self._open(job, files)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "PartialFolder":
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Release the lock; after an error of this library, there is nothing to continue."""
        if isinstance(error, RSTError):
            self.discard()
        self._journal.close()
        self._lock.release()

    def has(self, name: str) -> bool:
        """Return whether a file is finished and still has the recorded bytes; reads it once."""
        path = self.path / name
        return name in self._digests and path.is_file() and _digest(path) == self._digests[name]

    def finish(self, name: str) -> None:
        """Sync a file to disk, then record it in the journal."""
        sync_to_disk(self.path / name)
        sync_to_disk((self.path / name).parent)
        self._write({"file": name, "digest": _digest(self.path / name)})

    def publish(self) -> None:
        """Rename the folder to its final name, with all files at once; the target must be missing or empty."""
        self._journal.close()  # Windows cannot rename a folder with an open file
        (self.path / _JOURNAL).replace(self._journal_aside)  # not removed yet: the rename may be interrupted
        if self._output.is_dir():
            self._output.rmdir()
        self.path.rename(self._output)
        self._journal_aside.unlink()
        sync_to_disk(self._output.parent)

    def discard(self) -> None:
        """Remove the files and the folder."""
        self._journal.close()
        for name in (*self._files, _JOURNAL):  # the journal last, because it identifies the others
            (self.path / name).unlink(missing_ok=True)
        for folder in (*self._folders(), self.path):
            with suppress(OSError):  # not empty
                folder.rmdir()

    def _open(self, job: str, files: Collection[str]) -> None:
        self._check_links()
        self._check_owner()
        self._take_journal_back()
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / _JOURNAL).is_file():
            raise CheckpointError(f"contains files but no {_JOURNAL} to resume from; remove it", file=self.path)
        self.path.mkdir(exist_ok=True)
        self._journal = (self.path / _JOURNAL).open("a+b")
        try:
            self._files = set(files)
            self._digests = self._continue(job)
            if not self._digests:
                self._start(job)
            self._check_unknown_files()
            for name in self._files - self._digests.keys():  # not truncated: it may be a hard link
                (self.path / name).unlink(missing_ok=True)
        except BaseException:
            self._journal.close()
            raise

    @property
    def _journal_aside(self) -> Path:
        """The place of the journal while the folder is renamed."""
        return self.path.with_name(f".{self.path.name}.journal")

    def _take_journal_back(self) -> None:
        if self._journal_aside.is_symlink() or not self._journal_aside.is_file():
            return
        if self.path.is_dir() and not (self.path / _JOURNAL).exists():
            self._journal_aside.replace(self.path / _JOURNAL)
        else:  # left by a folder that was renamed
            self._journal_aside.unlink()

    def _continue(self, job: str) -> dict[str, str]:
        """Return the digests of the finished files; none if the journal is of another job, whose files are removed."""
        self._journal.seek(0)
        lines = [line for line in self._journal if line.endswith(b"\n")]  # the last line may be torn
        self._journal.truncate(sum(map(len, lines)))
        try:
            first, *finished = [json.loads(line) for line in lines] or [{"job": None, "files": []}]
            digests = {record["file"]: record["digest"] for record in finished}
            found, files = first["job"], [name for name in first["files"] if _is_inside(name)]
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"its {_JOURNAL} is damaged; remove the folder", file=self.path) from error
        for unfinished in self.path.iterdir():
            if target_of(unfinished.name) is not None:
                unfinished.unlink()
        if found == job:
            self._say(
                f"continues where another process stopped: {len(digests)} of {len(self._files)} files are reused "
                f"from it"
            )
            return digests
        if lines:
            self._say(
                "was left by a job with other inputs, settings or version; it is emptied, and everything is "
                "computed again"
            )
        for name in files:
            (self.path / name).unlink(missing_ok=True)
            with suppress(OSError):  # not empty, or not one below
                (self.path / name).parent.rmdir()
        return {}

    def _folders(self) -> list[Path]:
        """Return the subfolders that files lie in."""
        return [self.path / folder for folder in sorted({Path(name).parent.as_posix() for name in self._files} - {"."})]

    def _start(self, job: str) -> None:
        self._journal.truncate(0)
        self._write({"job": job, "files": sorted(self._files)})
        for folder in self._folders():
            folder.mkdir(exist_ok=True)
        sync_to_disk(self.path)
        sync_to_disk(self.path.parent)

    def _write(self, record: dict[str, Any]) -> None:
        self._journal.write(json.dumps(record).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _check_links(self) -> None:
        """Raise for links: anyone who may write beside the output may have put the folder there."""
        below = self.path.rglob("*") if self.path.is_dir() and not self.path.is_symlink() else ()
        if link := next((path for path in (self.path, *below) if path.is_symlink()), None):
            raise CheckpointError("is a symbolic link, which may lead anywhere; remove it", file=link)

    def _check_owner(self) -> None:
        """Raise for another user's folder: the digests in a journal prove its files only if its writer is trusted."""
        if self.path.exists() and hasattr(os, "geteuid") and (owner := self.path.stat().st_uid) != os.geteuid():
            raise CheckpointError(f"belongs to another user, number {owner}; remove it", file=self.path)

    def _say(self, what: str) -> None:
        warnings.warn(f"{self.path} {what}", RSTWarning, stacklevel=2)

    def _check_unknown_files(self) -> None:
        known = {*self._files, _JOURNAL, *(folder.name for folder in self._folders())}
        found = {path.relative_to(self.path).as_posix() for path in self.path.rglob("*")}
        if unknown := found - known:
            raise CheckpointError(
                f"contains {min(unknown)}, which is not part of {self._output}; remove it", file=self.path
            )


def _is_inside(name: str) -> bool:
    """Return whether a name from an untrusted journal is of a file in the folder or one folder below."""
    parts = PurePosixPath(name).parts
    return 1 <= len(parts) <= 2 and not {"..", "/"} & {*parts} and "\\" not in name


def _digest(path: Path) -> str:
    return digest_file(path)[:TEXT_DIGITS]
