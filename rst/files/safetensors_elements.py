"""Single elements of a safetensors file that is written to where it lies.

A mapped file would do, but for the system's large pages: a change of one byte there writes megabytes.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from rst.files.safetensors_reader import places_of
from rst.numerics.exactness import as_bytes

_PAGE = 1 << 12
_FAR = 4  # pages: what lies closer is written at once, with what is between


def write_elements(file: Path, changes: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Write elements, and wait until they are on the disk.

    Args:
        file: a safetensors file.
        changes: by the tensor's name in it, flat positions (nnz,), sorted, int64, and values (nnz,) of its dtype.
            Names that the file lacks are left out.

    Raises:
        DeltaFormatError: the file is no safetensors file.
        OSError: it cannot be written to.
    """
    places = places_of(os.fspath(file))
    with file.open("r+b") as opened:  # buffered, because one unbuffered call may read or write only a part
        for name in places.keys() & changes.keys():
            positions, values = changes[name]
            size = values.element_size()
            elements = as_bytes(values).numpy().reshape(-1, size)
            offsets = places[name] + positions.numpy() * size
            for part in _close(offsets):
                start, stop = int(offsets[part][0]), int(offsets[part][-1]) + size
                opened.seek(start)
                span = bytearray(opened.read(stop - start))
                np.frombuffer(span, np.uint8).reshape(-1, size)[(offsets[part] - start) // size] = elements[part]
                opened.seek(start)
                opened.write(span)
        opened.flush()
        os.fsync(opened.fileno())


def _close(offsets: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Iterator[slice]:
    """Yield the parts of sorted offsets that have nothing in between for a few pages."""
    gaps = np.flatnonzero(np.diff(offsets) > _FAR * _PAGE) + 1
    ends = [0, *gaps.tolist(), len(offsets)]
    for start, stop in pairwise(ends):
        if start < stop:
            yield slice(start, stop)
