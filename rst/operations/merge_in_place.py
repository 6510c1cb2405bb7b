"""Merging a delta into a checkpoint that stays where it is: only the pages that change are written.

An undo file is complete before the first weight changes. It is itself a delta, back from the tuned weights.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint, open_checkpoint, read_weight_map, weights_file
from rst.delta.file import delta_file, load_delta
from rst.delta.parameter_delta import ParameterDelta, gather
from rst.delta.sparse_delta import SparseDelta
from rst.errors import CheckpointError, NotCarriedError, WrongBaseError
from rst.files.locks import alone_in
from rst.files.safetensors_elements import write_elements
from rst.files.weight_names import is_index
from rst.numerics.exactness import bits, bytes_of_tensor
from rst.operations.extraction import Progress
from rst.operations.merge import PathLike
from rst.operations.merged_tensors import MergedTensors


@torch.no_grad()
def merge_in_place(
    base: PathLike,
    delta: SparseDelta | PathLike,
    undo: PathLike,
    *,
    write: bool = True,
    on_progress: Progress | None = None,
) -> int:
    """Turn the base's own files into the tuned weights, bit for bit, and write how to turn them back.

    >>> merge_in_place("model.safetensors", "delta.safetensors", "undo.safetensors")  # tuned now
    >>> merge_in_place("model.safetensors", "undo.safetensors", "redo.safetensors")  # the base again

    All of the changed tensors are read, and compared with the delta's digests; only the pages that differ are written.
    Copy the base first if others use it; where the file system shares blocks (`cp --reflink`), the copy costs nothing.
    If the process is killed while it writes, the files are neither: the same call completes them, with the undo file
    that is there.

    Args:
        base: a `.safetensors` file, or an index or a folder of such files.
        delta: made from this base: the delta, its file or its adapter folder.
        undo: the `.safetensors` file to write, or the one of the same call that was killed. Keep it.
        write: False checks everything that can be checked, and writes nothing.
        on_progress: called after each changed tensor with bytes done and bytes in all.

    Returns:
        How many weights have other bits now.

    Raises:
        CheckpointError: the base has other files than safetensors, or one is a link or has several names, whose others
            would change as well, or is not writable, or another process merges into it, or the undo file is an input,
            a link, or that of another merge.
        NotCarriedError: the delta stores a tensor whole that the base lacks, or has in another shape or dtype.
        DeltaFormatError: the delta, or an undo file that exists, is damaged.
        ParameterMismatchError: the base lacks a parameter, or has it in another shape or dtype.
        WrongBaseError: a tensor is not the one that the delta was made from.
        NonFiniteError: a weight would be, or was, NaN.

    Whatever of these is raised, no file has changed. Where a disk or a permission fails while it writes (`OSError`),
    the same call completes the files later.
    """
    undo, change = Path(undo), load_delta(delta)
    names_in = _writable_files(base)
    _check_undo(undo, [*names_in, *([] if isinstance(delta, SparseDelta) else [delta_file(delta)])])
    weights = weights_file(base)
    with alone_in(weights, weights.with_name(f"{weights.name}.lock")):
        return _merge(open_checkpoint(base), change, undo, names_in, write, on_progress)


def _merge(
    opened: Checkpoint,
    change: SparseDelta,
    undo: Path,
    names_in: Mapping[Path, Sequence[str]],
    write: bool,
    on_progress: Progress | None,
) -> int:
    wanted = [*change, *change.dense]
    opened = opened.named_as(wanted).named_as(wanted)  # first without a prefix, then an old spelling
    begun = load_delta(undo) if undo.exists() else None
    merging = MergedTensors(opened if begun is None else _put_back(opened, begun), change)
    names = list(dict.fromkeys([*merging.changed, *merging.whole]))
    total = sum(bytes_of_tensor(opened.outline(name)) for name in names if name in opened)
    back, targets, done = {}, {}, 0
    for name in names:
        try:
            tuned = _tuned(merging, name)
        except WrongBaseError as error:
            raise error if begun is None else _not_of_this(undo) from error
        undone = ParameterDelta.between(name, tuned, merging.base[name], op="replace")
        if undone.nnz:
            back[name] = undone
            targets[merging.original(name)] = undone.indices.long(), gather(tuned.reshape(-1), undone.indices)
        done += bytes_of_tensor(tuned)
        if on_progress:
            on_progress(done, total)
    opened.check_unchanged()
    undoing = SparseDelta(back, coordinates=change.coordinates)
    if begun is not None and begun.parameters != undoing.parameters:
        raise _not_of_this(undo)
    if write:
        if begun is None:
            undoing.save(undo)
        for file, names_of_file in names_in.items():
            write_elements(file, {name: targets[name] for name in names_of_file if name in targets})
    return undoing.nnz


def _writable_files(base: PathLike) -> Mapping[Path, Sequence[str]]:
    """Return each file with the names that are read from it, of which its own index may leave some out."""
    first = weights_file(base)
    found: defaultdict[Path, list[str]] = defaultdict(list)
    if is_index(first.name):
        for name, shard in read_weight_map(first).items():
            found[first.parent / shard].append(name)
    else:
        found[first] = [*open_checkpoint(first).original_names.values()]
    for file in found:
        if file.suffix != ".safetensors":
            raise CheckpointError("only .safetensors files are changed in place; merge into a new file", file=file)
        names = file.stat().st_nlink
        if file.is_symlink() or names > 1:
            which = "a link" if file.is_symlink() else f"one of {names} names of the same file"
            raise CheckpointError(f"{which}, and the weights would change under the others too; copy it", file=file)
        if not os.access(file, os.W_OK):
            raise CheckpointError("is not writable", file=file)
    return found


def _check_undo(undo: Path, inputs: Sequence[Path]) -> None:
    if undo.is_symlink():
        raise CheckpointError("is a link; choose another name for the undo file", file=undo)
    if undo.suffix != ".safetensors":
        raise CheckpointError("the undo file must be a .safetensors file", file=undo)
    if undo.exists() and any(undo.samefile(one) for one in inputs if one.exists()):
        raise CheckpointError("is an input; choose another name for the undo file", file=undo)


def _not_of_this(undo: Path) -> CheckpointError:
    return CheckpointError("exists, and undoes another merge, or one into another base; choose another name", file=undo)


def _put_back(opened: Checkpoint, undo: SparseDelta) -> Checkpoint:
    """Return weights that a killed merge has changed some of, as they were before."""
    plain = {original: name for name, original in opened.original_names.items()}

    def read(original: str) -> Tensor:
        tensor, before = opened.read(original), undo.parameters.get(plain[original])
        if before is None or (before.shape, before.dtype) != (tuple(tensor.shape), tensor.dtype):
            return tensor
        whole = tensor.clone(memory_format=torch.contiguous_format)
        bits(whole.view(-1)).index_copy_(0, before.indices.long(), bits(before.values))
        return whole

    return replace(opened, read=read, stored=None)


def _tuned(merging: MergedTensors, name: str) -> Tensor:
    tuned = merging.tensor(name)
    if name in merging.whole:
        known = merging.base.outline(name) if name in merging.base else None
        if known is None or (known.shape, known.dtype) != (tuned.shape, tuned.dtype):
            has = "no such tensor" if known is None else f"{known.dtype} {tuple(known.shape)}"
            raise NotCarriedError(
                f"stored whole, {tuned.dtype} {tuple(tuned.shape)}, and the base has {has}: its files have no room for "
                f"it; merge into a new file",
                file=merging.base.source,
                parameter=name,
            )
    return tuned
