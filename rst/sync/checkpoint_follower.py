"""A safetensors file that follows a chain: read, brought up to date in memory, replaced in one atomic write."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rst.checkpoints.checkpoint import open_checkpoint
from rst.files.atomic import atomic_write
from rst.files.safetensors_writer import WEIGHTS_OF_TORCH, specs_of, write_safetensors
from rst.sync.chain import read_pointer
from rst.sync.follower import Follower
from rst.sync.store import Store, open_store


def follow_into(path: str | os.PathLike[str], store: str | os.PathLike[str] | Store) -> tuple[int | None, int, str]:
    """Bring a file to the last published step. A killed process leaves the old file or the new one.

    Args:
        path: a `.safetensors` file; a missing one is made from the nearest anchor.
        store: as `Follower` takes it.

    Returns:
        `(came_from, step, state)`: the step that the file was at (None: not a step that the chain knows, so that it was
        written anew), the step it is at now, and that step's state.

    Raises:
        CheckpointError: the file is unreadable.
        ChainError: as `Follower.update`; the file is left as it is.
        ParameterMismatchError: the file has other tensors than the chain.
    """
    target, store = Path(path), open_store(store)
    pointer = read_pointer(store)
    if not target.exists():
        follower = Follower.from_last_anchor(store, pointer)
        came_from, step = None, follower.update().step
        _write(target, follower.weights, {}, {})
        return came_from, step, follower.state
    checkpoint = open_checkpoint(target)
    weights = {name: checkpoint[name].clone() for name in checkpoint}
    original_names, metadata = checkpoint.original_names, checkpoint.metadata
    del checkpoint  # Windows replaces no file that is mapped
    follower = Follower(weights, store)
    came_from = pointer.step_of(follower.state)
    step = follower.update().step
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
