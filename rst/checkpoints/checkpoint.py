"""Checkpoints as lazy mappings from canonical names to CPU tensors, whatever file, folder or object they come from."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rst.checkpoints.model_config import config_in_folder, config_of_module
from rst.checkpoints.nested_state import NESTED_UNDER, find_record, path_of_state, state_at
from rst.checkpoints.trainer_record import ModulePlace
from rst.checkpoints.transformers_files import coordinates_of
from rst.checkpoints.unpickling import check_tensors, unpickle
from rst.delta.sparse_delta import CoordinatesName
from rst.errors import CheckpointError
from rst.files.mapped_files import FileStamp, release
from rst.files.strict_json import parse_json, strings
from rst.files.weight_names import PIPELINE, components, find_weights, is_index
from rst.naming import canonical_names, own_prefix, plain_name, respelled, unwrap
from rst.numerics.exactness import is_plain

PICKLED_SUFFIXES = (".pt", ".pth", ".ckpt", ".th", ".bin")
_DCP_FILE = ".metadata"
RECORD_FILE = "rst_trainer.pt"
_LONGEST_NAME = 255  # bytes, on any file system
_UNREADABLE = (SafetensorError, OSError, KeyError, RuntimeError, AttributeError)

Weights = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module


@dataclass(frozen=True)
class Checkpoint(Mapping[str, Tensor]):
    """Weights by canonical name; a tensor is read on access.

    Attributes:
        source: path or description, for messages.
        original_names: canonical name to the name in the file.
        tied: names of tensors that share memory, mapped to the other name.
        record: the state of the trainer that wrote the checkpoint, if it is in the file or beside it in the folder.
        container: the whole unpickled object, for writing it back with other weights.
        path: the keys that lead to the weights in the container.
        stored: reads a tensor as it lies in the file, by its name there, before any cast; None unless the tensors are
            mapped from files that only this object has opened.
        stamps: the state of the files when they were opened, by the tensor's name in the file if it is mapped,
            otherwise by the file's own name.
        record_stamp: the state of the file that the record's tensors are mapped from.
        outlines: by the name in the file, where known, a tensor of the same dtype and shape.
        coordinates: "checkpoint" if the names are known to be those of checkpoint files; a pickled state dict may have
            those of a live module.
        model_config: the model's `config.json`, of a module of transformers or beside the weights in a folder.
        metadata: that of the safetensors file, or of the first shard.
        parts: of a pipeline, the weights of each model; their names start with the model's and a dot.
    """

    source: str
    original_names: Mapping[str, str]
    read: Callable[[str], Tensor]
    tied: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None
    container: Any = None
    path: Sequence[str] = ()
    stored: Callable[[str], Tensor] | None = None
    stamps: Mapping[str, FileStamp] = field(default_factory=dict)
    record_stamp: FileStamp | None = None
    outlines: Mapping[str, Tensor] = field(default_factory=dict)
    coordinates: CoordinatesName | None = None
    model_config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, "Checkpoint"] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor. Raises `KeyError` if it does not exist, `CheckpointError` if the file is damaged."""
        original = self.original_names[name]
        if stamp := self.stamps.get(original):
            stamp.check()
        try:
            return self.read(original)
        except _UNREADABLE as error:
            raise CheckpointError(f"cannot read {original} ({error})", file=self.source) from error

    def __contains__(self, name: object) -> bool:
        """Return whether a tensor exists, without reading it."""
        return name in self.original_names

    def outline(self, name: str) -> Tensor:
        """Return a tensor of the same dtype and shape, whose values must not be read. Raises as reading does."""
        found = self.outlines.get(self.original_names[name])
        return self[name] if found is None else found

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file that tensors are read from was written to since it was opened."""
        for stamp in set(self.stamps.values()):
            stamp.check()

    def mapped(self, name: str) -> Tensor | None:
        """Return one tensor as it is mapped from a file; None if it is not.

        Raises `CheckpointError` if the file was written to since: making a tensor of a truncated one kills the process.
        """
        if self.stored is None or name not in self:
            return None
        original = self.original_names[name]
        if stamp := self.stamps.get(original):
            stamp.check()
        try:
            tensor = self.stored(original)
        except _UNREADABLE:  # whoever reads it is told
            return None
        return tensor if is_plain(tensor) else None

    def release(self, name: str) -> None:
        """Return the memory of one tensor, if mapped from a file, to the system until it is read again."""
        if (tensor := self.mapped(name)) is not None:
            release(tensor)

    def named_as(self, names: Collection[str]) -> "Checkpoint":
        """Return these weights under the names that a delta has for them.

        They may differ by the prefix of a model whose head was added or removed, by old LayerNorm names, or by
        `module.`: a checkpoint alone does not distinguish a module's only child of that name from a wrapper, so its
        canonical names lack it.
        """
        prefix = own_prefix(names)
        if not prefix or any(name in self for name in names):
            return self._respelled(names)
        return replace(
            self,
            original_names={prefix + name: original for name, original in self.original_names.items()},
            tied={prefix + alias: prefix + owner for alias, owner in self.tied.items()},
        )

    def _respelled(self, names: Collection[str]) -> "Checkpoint":
        new = {old: name for name, old in respelled(self.original_names, names).items()}
        if not new:
            return self
        return replace(
            self,
            original_names={new.get(name, name): original for name, original in self.original_names.items()},
            tied={new.get(alias, alias): new.get(owner, owner) for alias, owner in self.tied.items()},
        )

    def in_files(self, places: Mapping[str, ModulePlace]) -> "Checkpoint":
        """Return these weights of a live module as the tensors of its checkpoint files, which lie at `places` in it."""
        of_module = {f"{place.name} at {name}": place for name, place in places.items() if name not in self}

        def read(original: str) -> Tensor:
            place = of_module.get(original)
            return self.read(original) if place is None else place.of(self[place.name])

        found = {name: f"{place.name} at {name}" for name, place in places.items() if place.name in self}
        return replace(self, original_names={**found, **self.original_names}, read=read)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the canonical names."""
        return iter(self.original_names)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.original_names)


def open_checkpoint(weights: Weights, key: str | None = None) -> Checkpoint:
    """Open weights for reading, tensor by tensor.

    Args:
        weights: a `.safetensors` file, a `.safetensors.index.json` or `.bin.index.json` of shards, a pickled
            checkpoint (`.pt`, `.pth`, `.ckpt`, `.th`, `.bin`; plain, or nested under `state_dict` or `model`), a
            model folder of transformers (also a `checkpoint-N`) or diffusers, a pipeline of diffusers (names start
            with the model's folder), a folder of torch.distributed.checkpoint, a state dict, or a module. Pickles are
            read with `weights_only=True`.
        key: which of several sets of weights in a checkpoint is meant, such as "state_dict_ema".

    Raises:
        CheckpointError: the weights do not exist, are not readable, hold no weights, or hold several sets and `key` is
            None.
    """
    if isinstance(weights, nn.Module):
        module = unwrap(weights)
        return replace(_from_module(module), model_config=config_of_module(module))
    if isinstance(weights, Mapping):
        return _from_state(weights, key)
    opened = _open_file(weights_file(weights), key)
    if Path(weights).is_dir():
        opened = replace(opened, model_config=config_in_folder(weights))
    beside = Path(weights) / RECORD_FILE
    if beside.is_file():
        return replace(opened, record_stamp=FileStamp.of(beside), record=_read_record(beside))
    return opened


def _open_file(path: Path, key: str | None = None) -> Checkpoint:
    if path.name == _DCP_FILE:
        return _from_dcp(path.parent, key)
    if path.name == PIPELINE:
        return _from_pipeline(path.parent)
    if is_index(path.name):
        return _from_shards(path)
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    if path.suffix in PICKLED_SUFFIXES:
        return _from_pickle(path, key)
    known = ", ".join((".safetensors", ".index.json", *PICKLED_SUFFIXES))
    raise CheckpointError(f"unknown kind of checkpoint; supported are {known} and model folders", file=path)


def checkpoint_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that `open_checkpoint` reads for a path: itself or those of a folder, an index and its shards.

    Raises:
        CheckpointError: the path does not exist, or the index of shards is not readable.
    """
    file = weights_file(path)
    record = Path(path) / RECORD_FILE
    beside = [record] if record.is_file() else []
    if file.name == _DCP_FILE:
        beside += sorted(file.parent.glob("*.distcp"))
    if file.name == PIPELINE:
        beside += [part for weights in components(file.parent).values() for part in checkpoint_files(weights)]
    elif is_index(file.name):
        beside += [file.parent / shard for shard in sorted(set(read_weight_map(file).values()))]
    return [file, *beside]


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that a path stands for: itself, or the file in a folder with the weights or their index.

    Raises:
        CheckpointError: there is none, or it is ambiguous.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError("no such file or folder", file=path)
    return find_weights(path, (_DCP_FILE, PIPELINE))


def _from_state(container: Mapping[str, Any], key: str | None) -> Checkpoint:
    """Open a state dict, plain or in a checkpoint in memory, as a file of it would be opened."""
    state, path = _state_in(container, key, "state dict")
    return replace(_from_mapping(state, "state dict"), record=find_record(container), container=container, path=path)


def _state_in(container: Any, key: str | None, source: str) -> tuple[Mapping[str, Tensor], list[str]]:
    try:
        path = path_of_state(container, key)
        state = state_at(container, path)
    except RecursionError as error:
        raise CheckpointError("nested too deeply", file=source) from error
    except CheckpointError as error:
        raise CheckpointError(error.reason, file=source) from error
    if state is None:
        raise CheckpointError(
            f"no weights found, neither at the top level nor under {', '.join(NESTED_UNDER)}", file=source
        )
    return state, path


def _from_mapping(state: Mapping[str, Tensor], source: str) -> Checkpoint:
    if not state:
        raise CheckpointError("contains no tensors", file=source)
    names = _original_names(state)
    return Checkpoint(source, names, state.__getitem__, _find_tied(names, state), outlines=state)


def _from_module(module: nn.Module) -> Checkpoint:
    state = module.state_dict(keep_vars=True)
    tensors = {name: tensor.detach() for name, tensor in state.items() if isinstance(tensor, Tensor)}
    found = _from_mapping(tensors, type(module).__name__)
    coordinates = coordinates_of(module)
    if not coordinates.files:
        return replace(found, coordinates="checkpoint")
    in_files = coordinates.to_files({plain_name(name): tensor for name, tensor in tensors.items()})
    return replace(
        found,
        original_names={name: name for name in in_files},
        read=in_files.__getitem__,
        tied=coordinates.ties_in_files(found.tied),
        outlines={},
        coordinates="checkpoint",
    )


def _original_names(names: Iterable[str]) -> dict[str, str]:
    """Map plain names to the names in the file."""
    return {plain: original for original, plain in canonical_names(names).items()}


def _find_tied(names: Mapping[str, str], state: Mapping[str, Tensor]) -> dict[str, str]:
    first: dict[tuple[Any, ...], str] = {}
    tied = {}
    for plain, original in names.items():
        tensor = state[original]
        if not is_plain(tensor) or tensor.numel() == 0:
            continue
        view = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if (owner := first.setdefault(view, plain)) != plain:
            tied[plain] = owner
    return tied


def _from_safetensors(path: Path) -> Checkpoint:
    try:
        stamp = FileStamp.of(path)
        file = safe_open(path, framework="pt")
        names: list[str] = list(file.keys())  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"not a readable safetensors file ({error})", file=path) from error
    if not names:
        raise CheckpointError("contains no tensors", file=path)
    stamps = dict.fromkeys(names, stamp)
    names_in_file = _original_names(names)
    return Checkpoint(
        str(path),
        names_in_file,
        file.get_tensor,
        stored=file.get_tensor,
        stamps=stamps,
        coordinates="checkpoint",
        metadata=dict(file.metadata() or {}),  # type: ignore[no-untyped-call]
    )


def _from_shards(path: Path) -> Checkpoint:
    weight_map = read_weight_map(path)
    if not weight_map:
        raise CheckpointError("contains no tensors", file=path)
    shards = {
        file_name: _open_file(weights_file(path.parent / file_name)) for file_name in sorted({*weight_map.values()})
    }
    readers = {name: shards[file_name].read for name, file_name in weight_map.items()}
    stamps = {name: stamp for shard in shards.values() for name, stamp in shard.stamps.items()}
    names = _original_names(weight_map)
    first = next(iter(shards.values()))

    def read(name: str) -> Tensor:
        return readers[name](name)

    return Checkpoint(
        str(path),
        names,
        read,
        stored=read,
        stamps=stamps,
        coordinates=first.coordinates,
        metadata=first.metadata,
    )


def _from_pipeline(folder: Path) -> Checkpoint:
    parts = {name: _open_file(file) for name, file in components(folder).items()}

    def read(original: str) -> Tensor:
        part, _, name = original.partition("/")
        return parts[part].read(name)

    def whole(pick: Callable[[Checkpoint], Mapping[str, Any]], separator: str) -> dict[str, Any]:
        return {f"{part}{separator}{name}": value for part, one in parts.items() for name, value in pick(one).items()}

    return Checkpoint(
        str(folder),
        {
            f"{part}.{name}": f"{part}/{original}"
            for part, one in parts.items()
            for name, original in one.original_names.items()
        },
        read,
        tied={f"{part}.{alias}": f"{part}.{owner}" for part, one in parts.items() for alias, owner in one.tied.items()},
        stored=read,
        stamps=whole(lambda one: one.stamps, "/"),
        outlines=whole(lambda one: one.outlines, "/"),
        coordinates="checkpoint" if all(one.coordinates == "checkpoint" for one in parts.values()) else None,
        parts=parts,
    )


def _from_dcp(folder: Path, key: str | None) -> Checkpoint:
    from rst.checkpoints.dcp import open_dcp  # torch.distributed.checkpoint takes a second to import

    files = [path for path in (folder / _DCP_FILE, *folder.glob("*.distcp")) if path.is_file()]
    stamps = {path.name: FileStamp.of(path) for path in files}
    weights = open_dcp(folder, key)
    return Checkpoint(
        str(folder),
        _original_names(weights),
        weights.__getitem__,
        record=weights.record,
        stamps=stamps,
        outlines=weights.outlines,
    )


def read_weight_map(path: Path) -> dict[str, str]:
    """Read the file of each tensor from a shard index. Raises `CheckpointError`, also for a file outside the folder."""
    try:
        weight_map: dict[str, str] = parse_json(path.read_bytes())["weight_map"]
        shards = set(strings(list(weight_map.values()), "weight_map"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"not a shard index ({type(error).__name__}: {error})", file=path) from error
    for name in shards:
        plain = Path(name).name == name and "\0" not in name and len(name.encode()) <= _LONGEST_NAME
        if not plain or Path(name).suffix not in (".safetensors", *PICKLED_SUFFIXES):
            raise CheckpointError(f"shard {name[:99]!r} is not a plain file name in the same folder", file=path)
    return weight_map


def _from_pickle(path: Path, key: str | None) -> Checkpoint:
    stamp = FileStamp.of(path)
    container = unpickle(path)
    state, keys = _state_in(container, key, str(path))
    check_tensors(str(path), state, path.stat().st_size)
    if all(tensor.is_meta for tensor in state.values()):
        raise CheckpointError("its tensors are on the meta device and have no values", file=path)
    found = _from_mapping(state, str(path))
    stamps = dict.fromkeys(state, stamp)
    return replace(
        found,
        record=_record_in(path, container),
        container=container,
        path=keys,
        stored=found.read,
        stamps=stamps,
        record_stamp=stamp,
    )


def _read_record(path: Path) -> Mapping[str, Any] | None:
    return _record_in(path, unpickle(path))


def _record_in(path: Path, container: Any) -> Mapping[str, Any] | None:
    """Return the trainer's record in the object unpickled from `path`, if there is one."""
    record = find_record(container)
    tensors = [record.get("base"), record.get("buffers")] if record else []
    kept = record.get("kept") if record else None
    tensors += kept.values() if isinstance(kept, Mapping) else []
    for part in tensors:
        if isinstance(part, Mapping):
            check_tensors(str(path), part, path.stat().st_size)
    return record
