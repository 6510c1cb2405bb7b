"""`torch.save` to a file, with the system's own error if the disk is full, which torch reports without a reason."""

from pathlib import Path
from typing import IO, Any, cast

import torch


def write_pickle(content: Any, path: Path) -> None:
    """Write as `torch.save` does, without the random name of a temporary file in the result.

    Raises:
        OSError: the disk is full, or a similar error.
    """
    with path.open("wb") as file:
        remembering = _Remembering(file)
        try:
            torch.save(content, cast(IO[bytes], remembering))
        except RuntimeError as error:
            raise remembering.error or error from error


class _Remembering:
    """A file that remembers the system's error when writing failed."""

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
