"""Merging a delta into its base, which gives the tuned weights bit for bit (Algorithm 2)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import overload

from torch import Tensor

from rst.checkpoints.checkpoint import PICKLED_SUFFIXES, open_checkpoint
from rst.checkpoints.nested_state import replace_state
from rst.checkpoints.pickle_writer import write_pickle
from rst.delta.file import load_delta
from rst.delta.sparse_delta import SparseDelta
from rst.errors import CheckpointError, ConfigError
from rst.files.atomic import atomic_write
from rst.files.safetensors_writer import by_width, write_safetensors
from rst.files.weight_index import LARGEST_SHARD, parse_size
from rst.numerics.dtypes import NAME_OF_COPIED
from rst.numerics.exactness import bytes_of_tensor, is_plain
from rst.operations.extraction import Progress
from rst.operations.merge_folder import merge_into_folder
from rst.operations.merged_tensors import MergedTensors

_OTHER_FORMATS = (".gguf", ".h5", ".json", ".msgpack", ".npz", ".onnx", ".zip")
PathLike = str | os.PathLike[str]


@overload
def merge(base: Mapping[str, Tensor], delta: SparseDelta, *, key: str | None = None) -> dict[str, Tensor]: ...
@overload
def merge(
    base: PathLike,
    delta: SparseDelta | PathLike,
    output: PathLike,
    *,
    key: str | None = None,
    max_shard_size: int | str | None = None,
    on_progress: Progress | None = None,
) -> Path: ...
def merge(
    base: Mapping[str, Tensor] | PathLike,
    delta: SparseDelta | PathLike,
    output: PathLike | None = None,
    *,
    key: str | None = None,
    max_shard_size: int | str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Tensor] | Path:
    """Add a delta to its base. The result equals the tuned weights bit for bit.

    >>> merge("base.safetensors", "delta.safetensors", "tuned.safetensors")
    >>> merge("base/", "delta.safetensors", "tuned/")  # shards and their index

    A folder grows under the name `tuned.partial`, which becomes `tuned` when all is in it. If the process is killed,
    the same call resumes after the last finished shard, unless the base, the delta or this library has changed.

    Args:
        base: a state dict, left as it is, or a file or folder (see `open_checkpoint`).
        delta: the delta, its file or its adapter folder.
        output: with files, where to write: `.safetensors` is streamed tensor by tensor; `.pt`, `.pth`, `.ckpt`,
            `.th` and `.bin` need a pickled base and keep its structure, and hold the changed tensors in memory. A
            name without a suffix, and an empty folder, become a folder of safetensors as transformers reads it, with
            the settings and tokenizer of a base that is a folder. An existing file is replaced, the base's own too.
        key: which of several sets of weights in the base is meant, such as "state_dict_ema"; others stay.
        max_shard_size: of an output folder, the bytes of tensors in one file: a number, or as `5GB` (the default).
        on_progress: called after each tensor with bytes done and bytes in all.

    Returns:
        The merged state dict with the base's own names, or the path written.

    Raises:
        CheckpointError: unreadable base, an output that cannot be written from it, or a folder with something in it.
        ConfigError: a `max_shard_size` that is no size, or with an output that is one file.
        DeltaFormatError: the delta is damaged.
        ParameterMismatchError: the base lacks a parameter, or has it in another shape or dtype.
        WrongBaseError: a base tensor is not the one that the delta was made from. Nothing is written.
    """
    if isinstance(base, Mapping):
        if not isinstance(delta, SparseDelta) or output is not None:
            raise TypeError("a state dict is merged with a SparseDelta, and returned")
        merging = MergedTensors(open_checkpoint(base, key), delta)
        merged: dict[str, Tensor] = replace_state(merging.base.container, merging.in_memory(), merging.base.path)
        return merged
    if output is None:
        raise TypeError("merging a file needs the path of the output")
    merging, target = MergedTensors(open_checkpoint(base, key), load_delta(delta)), Path(output)
    _check_output(merging, base, target, max_shard_size)
    if is_folder(target, max_shard_size, base):
        merge_into_folder(merging, Path(base), target, parse_size(max_shard_size or LARGEST_SHARD), on_progress)
    else:
        _merge_into_file(merging, target, on_progress)
    return target


def rehearse(
    base: PathLike,
    delta: SparseDelta | PathLike,
    output: PathLike | None = None,
    *,
    key: str | None = None,
    max_shard_size: int | str | None = None,
    on_progress: Progress | None = None,
) -> int:
    """Do everything that `merge` of a file does, and raise what it raises, but write nothing.

    >>> rehearse("base.safetensors", "delta.safetensors")  # is this the base of this delta?

    Returns:
        Bytes of all merged tensors.
    """
    merging = MergedTensors(open_checkpoint(base, key), load_delta(delta))
    if output is not None:
        _check_output(merging, base, Path(output), max_shard_size)
    return sum(bytes_of_tensor(tensor) for tensor in merging.stream(merging.specs(), on_progress))


def is_folder(output: Path, max_shard_size: int | str | None, base: PathLike) -> bool:
    """Return whether `merge` writes shards into a folder of this name, or one file.

    A base folder gives a folder, also under a name such as `llama-3.1`.
    """
    if output.is_dir() or not output.suffix or max_shard_size is not None:
        return True
    return Path(base).is_dir() and output.suffix not in (".safetensors", *PICKLED_SUFFIXES, *_OTHER_FORMATS)


def _merge_into_file(merging: MergedTensors, output: Path, on_progress: Progress | None) -> None:
    with atomic_write(output) as temporary:
        if output.suffix in PICKLED_SUFFIXES:
            merged = replace_state(merging.base.container, merging.in_memory(on_progress), merging.base.path)
            write_pickle(merged, temporary)
        else:
            specs = by_width(merging.specs())
            named = {merging.original(name): spec for name, spec in specs.items()}
            write_safetensors(temporary, named, merging.stream(specs, on_progress), merging.metadata())


def _check_output(merging: MergedTensors, base: PathLike, output: Path, max_shard_size: int | str | None) -> None:
    if max_shard_size is not None:
        parse_size(max_shard_size)
        if output.suffix in (".safetensors", *PICKLED_SUFFIXES):
            raise ConfigError(
                f"max_shard_size={max_shard_size!r} applies to an output folder, not to a file", file=output
            )
    if is_folder(output, max_shard_size, base):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise CheckpointError("already exists; shards are written to a new or empty folder", file=output)
        _check_storable(merging, output)
    elif merging.base.parts:
        raise CheckpointError("a pipeline is written to a folder; choose a name without a suffix", file=output)
    elif output.suffix in PICKLED_SUFFIXES:
        if merging.base.container is None:
            raise CheckpointError(
                f"the base {merging.base.source} is not a pickle; choose a .safetensors output", file=output
            )
    elif output.suffix == ".safetensors":
        _check_storable(merging, output)
    else:
        raise CheckpointError(
            f"unknown suffix; choose .safetensors, {', '.join(PICKLED_SUFFIXES)}, or a folder", file=output
        )


def _check_storable(merging: MergedTensors, output: Path) -> None:
    """Raise for tensors that a safetensors file cannot hold but a pickled base may."""
    for name in merging.base:
        tensor = merging.base.outline(name) if merging.base.container is not None else None
        if tensor is not None and not (is_plain(tensor) and tensor.dtype in NAME_OF_COPIED):
            kind = "quantised " if tensor.is_quantized else "without values, " if tensor.is_meta else ""
            raise CheckpointError(
                f"{kind}{tensor.dtype}, {tensor.layout}: safetensors has no such tensors; write a .pt file",
                file=output,
                parameter=name,
            )
