"""`torch.save` into a file, with the system's own error where the disk is full: torch tells of it without a reason."""

from pathlib import Path
from typing import IO, Any, cast

import torch


def write_pickle(content: Any, path: Path) -> None:
    """Write as `torch.save` does; the random name of a temporary file does not get into it.

    Raises:
        OSError: the disk is full, or the like.
    """
    with path.open("wb") as file:
        remembering = _Remembering(file)
        try:
            torch.save(content, cast(IO[bytes], remembering))
        except RuntimeError as error:
            raise remembering.error or error from error


class _Remembering:
    """A file that keeps what the system said when it could not be written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
