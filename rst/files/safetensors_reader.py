"""A safetensors file read at once, ten times faster than one tensor after another where it is small; or written to."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rst.errors import CheckpointError, DeltaFormatError
from rst.files.strict_json import parse_json
from rst.numerics.dtypes import DTYPE_OF_NAME


@dataclass(frozen=True)
class Contents:
    """A file's metadata, its tensors, which share the memory of `data`, and all its bytes."""

    metadata: dict[str, str]
    arrays: dict[str, Tensor]
    data: memoryview


def read_safetensors(source: str) -> Contents:
    """Read a file into memory.

    Raises:
        CheckpointError: there is no such file.
        DeltaFormatError: it cannot be read, or is no safetensors file.
    """
    return _contents(source, lambda: np.fromfile(source, dtype=np.uint8))


def map_privately(source: str) -> Contents:
    """Map a file; what is written to its tensors stays in memory. Raises as reading it.

    On Windows it is read: a file that is mapped cannot be deleted there.
    """
    if os.name == "nt":
        return read_safetensors(source)
    return _contents(source, lambda: np.memmap(source, dtype=np.uint8, mode="c"))


@contextmanager
def map_safetensors(source: str) -> Iterator[dict[str, Tensor]]:
    """Map a file: what is written to its tensors is in the file, and on the disk afterwards. Raises as reading it."""
    mapped = np.memmap(source, dtype=np.uint8, mode="r+")
    yield _contents(source, lambda: mapped).arrays
    mapped.flush()


def _contents(source: str, read: Callable[[], np.ndarray[Any, Any]]) -> Contents:
    if not Path(source).is_file():
        raise CheckpointError("no such file", file=source)
    try:
        with safe_open(source, framework="np"):  # judges the header, which may be hostile
            data = read()
        end = 8 + int.from_bytes(data[:8], "little")
        header = parse_json(data[8:end].tobytes())
        metadata = header.pop("__metadata__", None) or {}
        arrays = {name: _tensor(data, end, entry) for name, entry in header.items()}
    except (
        SafetensorError,
        OSError,
        ArithmeticError,
        ValueError,
        RuntimeError,
        TypeError,
        KeyError,
        MemoryError,
    ) as error:
        hint = "" if source.endswith(".safetensors") else "; rst export makes a delta, a .safetensors file"
        raise DeltaFormatError(f"not a readable safetensors file ({error}){hint}", file=source) from error
    return Contents(metadata, arrays, data.data)


def _tensor(data: np.ndarray[Any, Any], start: int, entry: dict[str, Any]) -> Tensor:
    shape, dtype = entry["shape"], DTYPE_OF_NAME[entry["dtype"]]
    first, last = entry["data_offsets"]
    if first == last:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool and data[start + first : start + last].max() > 1:
        raise ValueError("a bool is 0 or 1")  # torch counts on it
    flat = torch.frombuffer(data, dtype=dtype, count=(last - first) // dtype.itemsize, offset=start + first)
    return flat if len(shape) == 1 else flat.reshape(shape)
