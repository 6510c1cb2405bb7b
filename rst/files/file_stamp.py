"""Whether a file that stays mapped while it is read is still the one that was opened.

Memory mapped from a file shows what is written to it meanwhile, and a process that reads beyond the end of a file cut
short is killed by the system (SIGBUS). Looking at size and time before and after narrows that down to moments.
"""

from dataclasses import dataclass
from pathlib import Path

from rst.errors import CheckpointError


@dataclass(frozen=True)
class FileStamp:
    """A file as it was found."""

    path: Path
    found: tuple[int, int, int, int]

    @classmethod
    def of(cls, path: Path) -> "FileStamp":
        """The file as it is now."""
        return cls(path, _identify(path))

    def check(self) -> None:
        """Raise `CheckpointError` if the file was written to since; another in its place does no harm."""
        try:
            now = _identify(self.path)
        except OSError:  # gone from the folder; what is open stays
            return
        if now[:2] == self.found[:2] and now != self.found:
            raise CheckpointError("was changed while it was read", file=self.path)


def _identify(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
