"""A model folder that follows a chain: new shards beside the old ones, then an index that names them.

A new shard has the old one's name with the state in it: `model-00001-of-00002.9f3ac07b8d21e654.safetensors`. The index
alone determines the model's files, and it is replaced in one atomic write: a reader of the folder finds the old weights
or the new ones, and a reader of the old index that comes too late for its files finds none. A killed process leaves
files that no index names; the next process removes them.
"""

import json
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from rst.checkpoints.checkpoint import open_checkpoint, read_weight_map, weights_file
from rst.errors import CheckpointError
from rst.files.atomic import atomic_write, sync_to_disk
from rst.files.safetensors_reader import map_safetensors
from rst.files.safetensors_writer import WEIGHTS_OF_TORCH, specs_of, write_safetensors
from rst.files.strict_json import parse_json
from rst.files.temporaries import target_of, temporary_beside
from rst.files.weight_index import LARGEST_SHARD, bytes_of, index_text, parse_size, plan_shards
from rst.files.weight_names import WeightNames, is_index
from rst.sync.chain import Pointer
from rst.sync.follower import Follower
from rst.sync.state import fingerprint_state
from rst.sync.store import Store

LOCK = ".rst-follow.lock"
_OF_A_STATE = re.compile(r"(.+)\.[0-9a-f]{16}(\.safetensors)")
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}
Followed = tuple[int | None, int, str]


def weights_to_follow(folder: Path) -> Path | None:
    """Return the weight file of a folder, or its index; None if there are no weights.

    Raises:
        CheckpointError: the weights are not safetensors files of one model, or the index is a link.
    """
    try:
        file = weights_file(folder)
    except CheckpointError:
        found = [path.name for path in folder.iterdir() if path.suffix in _WEIGHTS]
        if all(_OF_A_STATE.fullmatch(name) for name in found):  # of a process killed before it wrote the index
            return None
        raise
    files = set(read_weight_map(file).values()) if is_index(file.name) else {file.name}
    if other := sorted(name for name in files if not name.endswith(".safetensors")):
        raise CheckpointError("only safetensors files can follow a chain; convert the folder", file=folder / other[0])
    if file.is_symlink() and is_index(file.name):
        raise CheckpointError("is a link, and would name shards that its own folder lacks; copy the folder", file=file)
    return file


def follow_into_shards(index: Path, store: Store, pointer: Pointer) -> Followed:
    """Update the shards of an index to the last published step; see `follow_into`. The disk holds both meanwhile."""
    folder, weight_map = index.parent, read_weight_map(index)
    _sweep(folder, set(weight_map.values()))
    checkpoint = open_checkpoint(index)
    plain_names = {original: name for name, original in checkpoint.original_names.items()}
    state = fingerprint_state(checkpoint, pointer.version)
    del checkpoint  # Windows cannot remove a mapped file
    if state == pointer.state:
        return pointer.step_of(state), pointer.step, state
    shards = sorted(set(weight_map.values()))
    with ExitStack() as opened:
        copies = {shard: opened.enter_context(temporary_beside(folder / shard)) for shard in shards}
        for shard, copy in copies.items():
            _copy(folder / shard, copy, {name for name, file in weight_map.items() if file == shard})
        came_from, step, state, changed = _follow_in(list(copies.values()), plain_names, store, pointer)
        touched = {file for name, file in weight_map.items() if plain_names.get(name) in changed}
        renamed = {shard: _name_at(shard, state) for shard in touched}
        for shard in touched:
            copies[shard].chmod((folder / shard).stat().st_mode & 0o777)
            sync_to_disk(copies[shard])
        try:
            for shard, name in renamed.items():
                copies[shard].replace(folder / name)
            sync_to_disk(folder)
            _turn(index, {name: renamed.get(file, file) for name, file in weight_map.items()})
        except BaseException:
            if read_weight_map(index) == weight_map:
                _sweep(folder, set(shards))
            raise
    _sweep(folder, {renamed.get(shard, shard) for shard in shards})
    return came_from, step, state


def make_shards(folder: Path, follower: Follower) -> None:
    """Write a follower's weights into a folder without weights: several shards and their index, or one file."""
    weights, names = follower.weights, WeightNames()
    specs = specs_of(weights)
    plan = plan_shards(specs, parse_size(LARGEST_SHARD), names)
    if len(plan) > 1:
        plan = {_name_at(file, follower.state): inside for file, inside in plan.items()}
    _sweep(folder, set(plan), every=True)
    for file, inside in plan.items():
        with atomic_write(folder / file) as temporary:
            write_safetensors(temporary, {name: specs[name] for name in inside}, (weights[name] for name in inside))
    if len(plan) > 1:
        _write_text(folder / names.index, index_text(plan, bytes_of(specs.values())))


def _copy(shard: Path, copy: Path, names: Collection[str]) -> None:
    """Rewrite tensor by tensor: mapping needs each tensor to start at a multiple of its element size."""
    checkpoint = open_checkpoint(shard)
    specs = specs_of({name: checkpoint.read(name) for name in names})
    write_safetensors(copy, specs, map(checkpoint.read, specs), {**WEIGHTS_OF_TORCH, **checkpoint.metadata})


def _follow_in(
    files: list[Path], plain_names: Mapping[str, str], store: Store, pointer: Pointer
) -> tuple[int | None, int, str, set[str]]:
    """Update the tensors of files to the last step, in the files; also return the names of those that changed."""
    with ExitStack() as mapped:
        weights: dict[str, Tensor] = {}
        for file in files:
            tensors = mapped.enter_context(map_safetensors(str(file)))
            weights |= {plain_names[name]: tensor for name, tensor in tensors.items() if name in plain_names}
        follower = Follower(weights, store)
        updated = follower.update()
        return updated.from_step, updated.step, follower.state, set(updated.changed)


def _name_at(shard: str, state: str) -> str:
    return f"{Path(_own_name(shard)).stem}.{state}.safetensors"


def _own_name(shard: str) -> str:
    """Return a shard's name before it followed a chain."""
    return _OF_A_STATE.sub(r"\1\2", shard)


def _sweep(folder: Path, kept: Collection[str], every: bool = False) -> None:
    """Remove other states of the shards `kept` and half-written ones; with `every`, those of other shards too."""
    own = {_own_name(name) for name in kept}
    for path in folder.iterdir():
        ours = _own_name(target_of(path.name) or path.name) in own or (every and _OF_A_STATE.fullmatch(path.name))
        if ours and path.name not in kept:
            path.unlink(missing_ok=True)


def _turn(index: Path, weight_map: Mapping[str, str]) -> None:
    record = parse_json(index.read_bytes())
    _write_text(index, json.dumps({**record, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n")


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
