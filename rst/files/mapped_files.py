"""Files that stay mapped while they are read: detecting changes since they were opened, and releasing memory.

Memory mapped from a file shows later writes to it, and the system kills a process (SIGBUS) that reads beyond the end of
a truncated file. Checking size and time before and after reduces the risk to moments.
Pages that were read count as the process' own until they are released: releasing keeps resident memory to one tensor.
"""

import ctypes
import mmap
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rst.errors import CheckpointError

_WORTH_RELEASING = 1 << 20  # bytes


@dataclass(frozen=True)
class FileStamp:
    """The state of a file when it was found."""

    path: Path
    found: tuple[int, int, int, int]

    @classmethod
    def of(cls, path: Path) -> "FileStamp":
        """Return the stamp of the file as it is now."""
        return cls(path, _identify(path))

    def check(self) -> None:
        """Raise `CheckpointError` if the file was written to since; a replacement by another file does no harm."""
        try:
            now = _identify(self.path)
        except OSError:  # removed from the folder; the open file remains
            return
        if now[:2] == self.found[:2] and now != self.found:
            raise CheckpointError("was changed while it was being read; try again", file=self.path)


def _identify(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def release(tensor: Tensor) -> None:
    """Let the system drop the pages under a tensor that is mapped from a file; a later read fetches them again.

    Does nothing for other memory, or if the system does not tell what is mapped. The mapped memory must not have been
    written to, because changes would be lost.
    """
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    if sys.platform.startswith("linux") and tensor.nbytes >= _WORTH_RELEASING and _is_mapped_from_file(start, end):
        _advise(tensor, mmap.MADV_DONTNEED)


def fetch(tensor: Tensor) -> None:
    """Have the system read a tensor that is mapped from a file; returns once the disk has been asked."""
    if sys.platform.startswith("linux"):
        _advise(tensor, mmap.MADV_WILLNEED)


def _advise(tensor: Tensor, advice: int) -> None:
    start = tensor.data_ptr()
    first_page = start // mmap.PAGESIZE * mmap.PAGESIZE
    size = ctypes.c_size_t(start + tensor.nbytes - first_page)
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first_page), size, advice)


def _is_mapped_from_file(start: int, end: int) -> bool:
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # such as a container without /proc
        return False
    return any(_maps_file(line, start, end) for line in maps.splitlines())


def _maps_file(line: str, start: int, end: int) -> bool:
    """Return whether a line of `/proc/self/maps` describes a file and contains these addresses."""
    addresses, _, _, _, inode, *_ = line.split()
    low, high = (int(address, 16) for address in addresses.split("-"))
    return inode != "0" and low <= start and end <= high
