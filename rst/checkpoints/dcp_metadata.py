"""The `.metadata` file of torch.distributed.checkpoint, read without running anything in it.

It is a pickle, which may name only the classes that describe such a checkpoint, torch.Size and dtypes.
"""

import math
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from rst.checkpoints.pickle_scan import check_pickle
from rst.errors import CheckpointError
from rst.files.budget import Budget

METADATA_FILE = ".metadata"
_CLASSES = {
    metadata.__name__: {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    filesystem.__name__: {"_StorageInfo", "_StoragePrefix"},
}


def read_metadata(path: Path) -> Metadata:
    """Read a `.metadata` file; check that chunks fill every tensor, and that the folder's files are long enough.

    Raises:
        CheckpointError: it is not readable, not complete, or names anything other than metadata.
    """
    try:
        data = path.read_bytes()
        _check_sizes(data)
        found = _Unpickler(BytesIO(data)).load()  # a file would be read to the length that a frame claims
        return _checked(found, path.parent)
    except Exception as error:  # a damaged pickle can make the unpickler raise any class
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"not readable metadata of torch.distributed.checkpoint ({reason})", file=path) from error


def _check_sizes(data: bytes) -> None:
    """Raise `ValueError` if the unpickler would take memory that a pickle of this size cannot need."""
    for opcode, argument, _ in pickletools.genops(data):  # which itself rejects lengths beyond the data
        if "PUT" in opcode.name and int(argument) > len(data):  # type: ignore[arg-type]  # the memo is an array
            raise ValueError(f"it numbers an object {argument} in {len(data)} bytes")
    check_pickle(BytesIO(data), Budget(len(data)))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return only the classes of metadata, and nothing that lets a pickle change the rest of the process."""
        if name in _CLASSES.get(module, ()):
            found: type = getattr(filesystem if module == filesystem.__name__ else metadata, name)
            return type(name, (found,), {})
        if module == metadata.__name__ and name == "_MEM_FORMAT_ENCODING":
            return lambda value: metadata._MEM_FORMAT_ENCODING(value)
        if (module, name) == ("builtins", "getattr"):  # Python 3.11.0 to 3.11.3 pickle enum members by name
            return lambda _, member: metadata._MEM_FORMAT_ENCODING[member]
        if (module, name) == ("torch.serialization", "_get_layout"):
            return lambda _: torch.strided
        if module.partition(".")[0] == "pathlib":
            return lambda *_: None  # where it was saved, which is not needed
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _checked(found: Any, folder: Path) -> Metadata:
    """Return checked metadata, with torch's index class, as lookups compare classes. Raises anything if malformed."""
    entries = dict(found.state_dict_metadata)
    storage = {MetadataIndex(at.fqn, at.offset, at.index): place for at, place in found.storage_data.items()}
    for place in storage.values():
        if Path(place.relative_path).name != place.relative_path:
            raise ValueError(f"{place.relative_path!r} is not a plain file name")
    sizes = {name: (folder / name).stat().st_size for name in {place.relative_path for place in storage.values()}}
    for place in storage.values():
        if not 0 <= place.offset <= place.offset + place.length <= sizes[place.relative_path]:
            raise ValueError(f"{place.relative_path} has {sizes[place.relative_path]} bytes, too few")
    for key, entry in entries.items():
        if isinstance(entry, TensorStorageMetadata):
            _check_tensor(key, entry, storage)
        elif not isinstance(entry, BytesStorageMetadata):
            raise ValueError(f"{key} is a {type(entry).__name__}")
    return Metadata(entries, planner_data=found.planner_data, storage_data=storage)


def _check_tensor(key: str, entry: TensorStorageMetadata, storage: Mapping[MetadataIndex, Any]) -> None:
    if not isinstance(entry.properties.dtype, torch.dtype):
        raise ValueError(f"{key} has dtype {entry.properties.dtype!r}")
    inside = all(_lies_in(entry.size, chunk) for chunk in entry.chunks)
    stored = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
    if not inside or stored != math.prod(entry.size):
        raise ValueError(f"{key} has {math.prod(entry.size)} elements, its {len(entry.chunks)} chunks {stored}")
    for chunk in entry.chunks:
        place = storage[MetadataIndex(key, chunk.offsets)]
        nbytes = math.prod(chunk.sizes) * entry.properties.dtype.itemsize
        if nbytes > place.length and not getattr(place, "transform_descriptors", None):  # none are compressed
            raise ValueError(f"{key} has a chunk of {nbytes} bytes, of which {place.length} are stored")


def _lies_in(size: Sequence[int], chunk: ChunkStorageMetadata) -> bool:
    corners = zip(chunk.offsets, chunk.sizes, size, strict=True)
    return all(offset >= 0 and length >= 0 and offset + length <= whole for offset, length, whole in corners)
