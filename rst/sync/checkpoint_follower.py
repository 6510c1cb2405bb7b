"""A file or model folder that follows a chain: a file is updated in memory and replaced atomically.

Shards are updated one at a time: see `rst.sync.folder_follower`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rst.checkpoints.checkpoint import open_checkpoint
from rst.files.atomic import atomic_write
from rst.files.locks import alone_in
from rst.files.safetensors_writer import WEIGHTS_OF_TORCH, specs_of, write_safetensors
from rst.files.weight_names import is_index
from rst.sync.chain import Pointer, read_pointer
from rst.sync.folder_follower import LOCK, Followed, follow_into_shards, make_shards, weights_to_follow
from rst.sync.follower import Follower
from rst.sync.store import Store, open_store


def follow_into(path: str | os.PathLike[str], store: str | os.PathLike[str] | Store) -> Followed:
    """Update a file or a model folder to the last published step. A killed process leaves the old weights or the new.

    Args:
        path: a `.safetensors` file, or a folder of transformers or diffusers: one such file, or shards and their index.
            A missing file or folder is created from the nearest anchor; a folder's settings and tokenizer are not part
            of a chain.
        store: as `Follower` takes it.

    Returns:
        `(came_from, step, state)`: the step that the weights were at (None: not a step that the chain knows, so that
        they were written anew), the step they are at now, and that step's state.

    Raises:
        CheckpointError: the weights are unreadable, a folder's are no safetensors files or have a link for an index, or
            another process brings the folder up to date.
        ChainError: as `Follower.update`; the weights are left as they are.
        ParameterMismatchError: they have other tensors than the chain.
    """
    target, store = Path(path), open_store(store)
    pointer = read_pointer(store)
    if target.suffix == ".safetensors" and not target.is_dir():
        return _follow_into_file(target, store, pointer)
    target.mkdir(exist_ok=True)
    with alone_in(target, target / LOCK):
        file = weights_to_follow(target)
        if file is None:
            follower = Follower.from_last_anchor(store, pointer)
            step = follower.update().step
            make_shards(target, follower)
            return None, step, follower.state
        follow = follow_into_shards if is_index(file.name) else _follow_into_file
        return follow(file, store, pointer)


def _follow_into_file(target: Path, store: Store, pointer: Pointer) -> Followed:
    if not target.exists():
        follower = Follower.from_last_anchor(store, pointer)
        came_from, step = None, follower.update().step
        _write(target, follower.weights, {}, {})
        return came_from, step, follower.state
    checkpoint = open_checkpoint(target)
    weights = {name: checkpoint[name].clone() for name in checkpoint}
    original_names, metadata = checkpoint.original_names, checkpoint.metadata
    del checkpoint  # Windows cannot replace a mapped file
    follower = Follower(weights, store)
    updated = follower.update()
    came_from, step = updated.from_step, updated.step
    if came_from != step:
        _write(target, weights, original_names, metadata)
    return came_from, step, follower.state


def _write(
    target: Path, weights: Mapping[str, Tensor], original_names: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    specs = specs_of(weights)
    named = {original_names.get(name, name): spec for name, spec in specs.items()}
    with atomic_write(target) as temporary:
        write_safetensors(temporary, named, (weights[name] for name in specs), {**WEIGHTS_OF_TORCH, **metadata})
