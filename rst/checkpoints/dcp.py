"""Folders of torch.distributed.checkpoint, saved by any number of processes and read tensor by tensor in one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from rst.checkpoints.dcp_metadata import METADATA_FILE, read_metadata
from rst.checkpoints.nested_state import NESTED_UNDER, TRAINER_RECORD, path_of_state, state_at
from rst.checkpoints.unpickling import forget_failed_load
from rst.errors import CheckpointError

_RECORD_KEYS = {"format", "version", "base"}
_EMPTY_IF_MISSING = ("base", "buffers", "tied")  # DCP does not save empty dicts


@dataclass(frozen=True)
class DcpWeights(Mapping[str, Tensor]):
    """Tensors of a folder by name, read on access; memory use follows the largest.

    Attributes:
        outlines: each tensor's dtype and shape, on the meta device.
        record: the trainer's record, if it was saved in the same folder; its tensors are read on access.
    """

    outlines: Mapping[str, Tensor]
    record: Mapping[str, Any] | None
    _folder: "_Folder"

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor. Raises `KeyError` if there is none, `CheckpointError` if it cannot be read."""
        found: Tensor = self._folder.read(self._folder.key_of(self.outlines[name]))
        return found

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.outlines)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.outlines)


def open_dcp(path: Path, key: str | None = None) -> DcpWeights:
    """Open the weights of a folder: all tensors, or those saved under `model`, `state_dict` and the like.

    Only plain data is unpickled: see `rst.checkpoints.dcp_metadata`; the rest is read with `weights_only=True`.

    Raises:
        CheckpointError: the metadata are damaged, there are no weights, or several sets and `key` is None.
    """
    folder = _Folder(path)
    try:
        tree = folder.tree()
        state = state_at(tree, path_of_state(tree, key))
    except CheckpointError as error:
        error.file = error.file or str(path)
        raise
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:  # impossible sizes or nesting
        raise CheckpointError(f"not readable metadata of torch.distributed.checkpoint ({error})", file=path) from error
    if state is None:
        raise CheckpointError(
            f"no weights found, neither at the top level nor under {', '.join(NESTED_UNDER)}", file=path
        )
    return DcpWeights(state, _find_record(folder, tree), folder)


_QUANTISED = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)


class _SafePlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        self.state_dict[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


class _Folder:
    """The objects saved under the flat keys of a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._metadata = read_metadata(path / METADATA_FILE)
        self._reader = FileSystemReader(path)
        self._reader.set_up_storage_reader(self._metadata, True)
        self._keys: dict[int, str] = {}

    def tree(self) -> dict[str, Any]:
        """Return the saved object with its nesting: outlines for tensors, flat keys for everything else."""
        tree: dict[str, Any] = {}
        paths = self._metadata.planner_data or {}
        for key, entry in self._metadata.state_dict_metadata.items():
            *above, last = paths.get(key, (key,))
            branch = tree
            for part in above:
                branch = branch.setdefault(part, {})
            if last in branch:
                raise ValueError(f"{key} has the same path as another entry")
            branch[last] = key
            if isinstance(entry, TensorStorageMetadata):
                outline = branch[last] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
                self._keys[id(outline)] = key
        return tree

    def key_of(self, outline: Tensor) -> str:
        """Return the flat key of a tensor in the tree."""
        return self._keys[id(outline)]

    def read(self, key: str) -> Any:
        """Read a tensor, or plain data. Raises `CheckpointError`."""
        entry = self._metadata.state_dict_metadata[key]
        if isinstance(entry, TensorStorageMetadata) and entry.properties.dtype in _QUANTISED:
            raise CheckpointError(
                f"{entry.properties.dtype}: torch.distributed.checkpoint can save a quantised tensor but cannot "
                f"read one; use exclude_modules (--exclude) to keep the base's tensor",
                file=self._path,
                parameter=key,
            )
        try:
            into = None
            if isinstance(entry, TensorStorageMetadata):
                into = torch.empty(entry.size, dtype=entry.properties.dtype)
            state: dict[str, Any] = {key: into}
            planner = _SafePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
            planner.set_up_planner(state, Metadata({key: entry}))
            self._reader.read_data(planner.create_local_plan(), planner).wait()
        except Exception as error:  # from the system, torch.load, or the reader's own checks
            forget_failed_load()
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise CheckpointError(f"cannot read {key} ({reason})", file=self._path) from error
        return state[key]

    def lazily(self, tree: Mapping[str, Any]) -> Any:
        """Return a branch of the tree with its plain data read; its tensors are read on access."""
        if any(isinstance(value, Tensor) for value in tree.values()):
            return DcpWeights(tree, None, self)
        return {
            name: self.lazily(value) if isinstance(value, Mapping) else self.read(value) for name, value in tree.items()
        }


def _find_record(folder: _Folder, tree: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for branch in tree.values():
        if isinstance(branch, Mapping) and branch.keys() >= _RECORD_KEYS:
            record: dict[str, Any] = {key: {} for key in _EMPTY_IF_MISSING} | folder.lazily(branch)
            if record["format"] == TRAINER_RECORD:
                return record
    return None
