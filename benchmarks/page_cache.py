"""Reads that come from the disk, and not from what the system keeps of files in memory."""

import os
from pathlib import Path


def forget(path: Path) -> None:
    """Have the system forget what it keeps of a file in memory; what is not on the disk yet is written first."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
