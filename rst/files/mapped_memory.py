"""Giving back the pages of memory-mapped files, so that resident memory follows one tensor and not the checkpoint."""

import ctypes
import mmap
import sys
from pathlib import Path

from torch import Tensor

_WORTH_RELEASING = 1 << 20  # bytes


def release(tensor: Tensor) -> None:
    """Let the system drop the pages under a tensor that is mapped from a file; a later read fetches them again.

    Other memory is left alone. Mapped memory must not have been written to: what was written would be lost.
    """
    length = tensor.nbytes
    if not sys.platform.startswith("linux") or length < _WORTH_RELEASING:
        return
    start = tensor.data_ptr()
    if _is_mapped_from_file(start, start + length):
        first_page = start // mmap.PAGESIZE * mmap.PAGESIZE
        size = ctypes.c_size_t(start + length - first_page)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first_page), size, mmap.MADV_DONTNEED)


def _is_mapped_from_file(start: int, end: int) -> bool:
    return any(_maps_file(line, start, end) for line in Path("/proc/self/maps").read_text().splitlines())


def _maps_file(line: str, start: int, end: int) -> bool:
    """Whether a line of `/proc/self/maps` is of a file, and has these addresses in it."""
    addresses, _, _, _, inode, *_ = line.split()
    low, high = (int(address, 16) for address in addresses.split("-"))
    return inode != "0" and low <= start and end <= high
