"""A safetensors file read at once, ten times faster than one tensor after another where it is small; or written to."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rst.errors import CheckpointError, DeltaFormatError
from rst.files.strict_json import parse_json
from rst.numerics.dtypes import DTYPE_OF_NAME

_MOST_JOINED = 1 << 26  # bytes; of larger files one more copy in memory is worse than many small tensors


class _Entry(NamedTuple):
    dtype: torch.dtype
    shape: list[int]
    first: int  # byte of the file
    last: int


class StoredArrays:
    """The arrays of a file, made into tensors as they are taken out; most share the memory of the file's bytes."""

    def __init__(self, data: np.ndarray[Any, Any], entries: dict[str, _Entry]) -> None:
        """Of entries that were found to lie in `data`."""
        self._data, self._entries = data, entries

    def __contains__(self, name: object) -> bool:
        """Whether an array is still there."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """The names of those that are still there."""
        return iter(self._entries)

    def __len__(self) -> int:
        """How many are still there."""
        return len(self._entries)

    def begins(self, name: str) -> int:
        """Return the first byte of an array that is still there."""
        return self._entries[name].first

    def take(self, name: str) -> Tensor | None:
        """Take out one; None if there is none of this name. Raises `ValueError` or `RuntimeError` if it is none."""
        entry = self._entries.pop(name, None)
        return None if entry is None else _tensor(self._data, entry)

    def count(self, name: str, dtype: torch.dtype) -> int | None:
        """The entries of an array that can be joined to others: in one dimension, of this dtype. None of all others."""
        entry = self._entries.get(name)
        if entry is None or entry.dtype != dtype or dtype == torch.bool or len(entry.shape) != 1:
            return None
        return entry.shape[0] or None if self._data.nbytes <= _MOST_JOINED else None

    def take_joined(self, names: Sequence[str], dtype: torch.dtype) -> Tensor:
        """Take out arrays that have a `count`, laid end to end in memory of their own: a copy of all, not one of each.

        Shape (entries of all,).
        """
        entries = [self._entries.pop(name) for name in names]
        data = np.concatenate([self._data[entry.first : entry.last] for entry in entries])
        return torch.from_numpy(data).view(dtype)


@dataclass(frozen=True)
class Contents:
    """A file's metadata, its arrays, and all its bytes."""

    metadata: dict[str, str]
    stored: StoredArrays
    data: memoryview


def read_safetensors(source: str) -> Contents:
    """Read a file into memory.

    Raises:
        CheckpointError: there is no such file.
        DeltaFormatError: it cannot be read, or is no safetensors file.
    """
    return _contents(source, lambda: _read(source))


def map_privately(source: str) -> tuple[Contents, dict[str, Tensor]]:
    """Map a file; what is written to its tensors stays in memory. Raises as reading it.

    On Windows it is read: a file that is mapped cannot be deleted there.
    """
    contents = _contents(source, lambda: _read(source) if os.name == "nt" else _mapped(source, "c"))
    return contents, _tensors(source, contents)


def places_of(source: str) -> dict[str, int]:
    """Return where each tensor of a file begins, in bytes. Raises as reading it."""
    contents = _contents(source, lambda: np.memmap(source, dtype=np.uint8, mode="r"))
    return {name: contents.stored.begins(name) for name in contents.stored}


@contextmanager
def map_safetensors(source: str) -> Iterator[dict[str, Tensor]]:
    """Map a file: what is written to its tensors is in the file, and on the disk afterwards. Raises as reading it."""
    mapped = _mapped(source, "r+")
    yield _tensors(source, _contents(source, lambda: mapped))
    mapped.flush()


def _read(source: str) -> np.ndarray[Any, Any]:
    return np.fromfile(source, dtype=np.uint8)


def _mapped(source: str, mode: Literal["c", "r+"]) -> "np.memmap[Any, Any]":
    return np.memmap(source, dtype=np.uint8, mode=mode)


def _contents(source: str, read: Callable[[], np.ndarray[Any, Any]]) -> Contents:
    if not Path(source).is_file():
        raise CheckpointError("no such file", file=source)
    with _refusing(source):
        with safe_open(source, framework="np"):  # judges the header, which may be hostile
            data = read()
        end = 8 + int.from_bytes(data[:8], "little")
        header = parse_json(data[8:end].tobytes())
        metadata = header.pop("__metadata__", None) or {}
        entries = {name: _entry(entry, end) for name, entry in header.items()}
    return Contents(metadata, StoredArrays(data, entries), data.data)


def _tensors(source: str, contents: Contents) -> dict[str, Tensor]:
    with _refusing(source):
        found = {name: contents.stored.take(name) for name in list(contents.stored)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


@contextmanager
def _refusing(source: str) -> Iterator[None]:
    try:
        yield
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


def _entry(entry: dict[str, Any], start: int) -> _Entry:
    first, last = entry["data_offsets"]
    return _Entry(DTYPE_OF_NAME[entry["dtype"]], entry["shape"], start + first, start + last)


def _tensor(data: np.ndarray[Any, Any], entry: _Entry) -> Tensor:
    dtype, shape, first, last = entry
    if first == last:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool and data[first:last].max() > 1:
        raise ValueError("a bool is 0 or 1")  # torch counts on it
    flat = torch.frombuffer(data, dtype=dtype, count=(last - first) // dtype.itemsize, offset=first)
    return flat if len(shape) == 1 else flat.reshape(shape)
