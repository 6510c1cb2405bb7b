"""Base plus delta: the tuned weights again, bit for bit (Algorithm 2)."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from rst.atomic import atomic_write
from rst.base_lookup import check_fits, names_in_base
from rst.checkpoints import PICKLED_SUFFIXES, Checkpoint, open_checkpoint, replace_state
from rst.delta import SparseDelta
from rst.errors import CheckpointError, WrongBaseError
from rst.exactness import bits
from rst.extraction import Progress
from rst.fingerprint import digest
from rst.parameter_delta import ParameterDelta, gather
from rst.safetensors_writer import TensorSpec, by_width, write_safetensors
from rst.validation import validate

PathLike = str | os.PathLike[str]


@overload
def merge(base: Mapping[str, Tensor], delta: SparseDelta) -> dict[str, Tensor]: ...
@overload
def merge(
    base: PathLike, delta: SparseDelta | PathLike, output: PathLike, *, on_progress: Progress | None = None
) -> Path: ...
def merge(
    base: Mapping[str, Tensor] | PathLike,
    delta: SparseDelta | PathLike,
    output: PathLike | None = None,
    *,
    on_progress: Progress | None = None,
) -> dict[str, Tensor] | Path:
    """Add a delta to its base. The result equals the tuned weights bit for bit.

    >>> merge("base.safetensors", "delta.safetensors", "tuned.safetensors")

    Args:
        base: a state dict, left as it is, or a file or folder (see `open_checkpoint`).
        delta: the delta or its file.
        output: with files, where to write: `.safetensors` is streamed tensor by tensor; `.pt`, `.pth`, `.ckpt`,
            `.th` and `.bin` need a pickled base and keep its structure, and hold the changed tensors in memory.
        on_progress: called after each tensor with bytes done and bytes in all.

    Returns:
        The merged state dict with the base's own names, or the path written.

    Raises:
        CheckpointError: unreadable base, or an output that cannot be written from it.
        DeltaFormatError: the delta is damaged.
        ParameterMismatchError: the base lacks a parameter, or has it in another shape or dtype.
        WrongBaseError: a base tensor is not the one that the delta was made from. Nothing is written.
    """
    if isinstance(base, Mapping):
        if not isinstance(delta, SparseDelta) or output is not None:
            raise TypeError("a state dict is merged with a SparseDelta, and returned")
        return _Merge(open_checkpoint(base), delta).in_memory()
    if output is None:
        raise TypeError("merging a file needs the path of the output")
    return _merge_file(_open(base, delta), Path(output), on_progress)


def rehearse(
    base: PathLike,
    delta: SparseDelta | PathLike,
    output: PathLike | None = None,
    *,
    on_progress: Progress | None = None,
) -> int:
    """Do everything that `merge` of a file does, and raise what it raises, but write nothing.

    >>> rehearse("base.safetensors", "delta.safetensors")  # is this the base of this delta?

    Returns:
        Bytes of all merged tensors.
    """
    merging = _open(base, delta)
    if output is not None:
        _check_output(merging, Path(output))
    return sum(tensor.nbytes for tensor in merging.stream(merging.specs(), on_progress))


class _Merge:
    """A base and a delta that have been checked against each other by name, shape and dtype."""

    def __init__(self, base: Checkpoint, delta: SparseDelta) -> None:
        self.base = base = base.named_as([*delta, *delta.dense])
        self.changed: dict[str, ParameterDelta] = {}
        self.whole: dict[str, Tensor] = {}
        validate(delta.parameters, "delta")
        for name, change in delta.parameters.items():
            for present in names_in_base(name, delta, base):
                check_fits(present, change, base)
                self.changed[present] = change
        for name, tensor in delta.dense.items():
            aliases = [alias for alias in delta.names_of(name) if alias in base]
            self.whole |= dict.fromkeys([name, *aliases], tensor)

    def specs(self) -> dict[str, TensorSpec]:
        """Dtype and shape of every merged tensor, by plain name."""
        specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.base.items()}
        return specs | {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self.whole.items()}

    def tensor(self, name: str) -> Tensor:
        """One merged tensor; the base's own where nothing changed. Raises `WrongBaseError`."""
        if name in self.whole:
            return self.whole[name]
        if name not in self.changed:
            return self.base[name]
        change, origin = self.changed[name], self.base[name].detach()
        self._check_base(name, change, origin)
        merged = origin.clone(memory_format=torch.contiguous_format)
        change = change.to(merged.device)
        positions = change.indices.long()
        flat = merged.view(-1)
        bits(flat).index_copy_(0, positions, bits(change.tuned_values(gather(flat, positions))))
        return merged

    def _check_base(self, name: str, change: ParameterDelta, origin: Tensor) -> None:
        if change.base is not None and (found := digest(origin)) != change.base.whole:
            raise WrongBaseError(
                f"{self.base.source}: {name} is not the tensor the delta was made from "
                f"(BLAKE3 {found[:12]}, wanted {change.base.whole[:12]})"
            )

    def original(self, name: str) -> str:
        """The base's own name for a tensor, with its wrapper's prefix; new tensors get the same prefix."""
        if name in self.base.original_names:
            return self.base.original_names[name]
        plain, known = next(iter(self.base.original_names.items()))
        return known.removesuffix(plain) + name if known.endswith(plain) else name

    def in_memory(self, on_progress: Progress | None = None) -> dict[str, Tensor]:
        """All merged tensors under the base's own names; tied ones stay one tensor."""
        specs = self.specs()
        shared = {alias: owner for alias, owner in self.base.tied.items() if self._alike(alias, owner)}
        own = {name: spec for name, spec in specs.items() if name not in shared}
        merged = dict(zip(own, self.stream(own, on_progress), strict=True))
        return {self.original(name): merged[shared.get(name, name)] for name in specs}

    def _alike(self, alias: str, owner: str) -> bool:
        """Whether two names of one base tensor are still one afterwards; tuning may have untied them."""
        same_change = self.changed.get(alias) is self.changed.get(owner)
        return same_change and self.whole.get(alias) is self.whole.get(owner)

    def stream(self, specs: Mapping[str, TensorSpec], on_progress: Progress | None) -> Iterator[Tensor]:
        """The merged tensors that `specs` names, one after another."""
        total = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in specs.values())
        done, written = 0, ""
        for name in specs:
            tensor = self.tensor(name)
            if name in self.changed:
                self.base.release(name)  # copied
            yield tensor
            self.base.release(written)  # a writer may still be busy with the last, not with the one before
            written = name
            done += tensor.nbytes
            if on_progress:
                on_progress(done, total)


def _open(base: PathLike, delta: SparseDelta | PathLike) -> _Merge:
    change = delta if isinstance(delta, SparseDelta) else SparseDelta.load(delta)
    return _Merge(open_checkpoint(base), change)


def _merge_file(merging: _Merge, output: Path, on_progress: Progress | None) -> Path:
    _check_output(merging, output)
    with atomic_write(output) as temporary:
        if output.suffix in PICKLED_SUFFIXES:
            merged = replace_state(merging.base.container, merging.in_memory(on_progress))
            with temporary.open("wb") as file:  # given a path, torch.save would write its random name into the file
                torch.save(merged, file)
        else:
            specs = by_width(merging.specs())
            named = {merging.original(name): spec for name, spec in specs.items()}
            write_safetensors(temporary, named, merging.stream(specs, on_progress))
    return output


def _check_output(merging: _Merge, output: Path) -> None:
    if output.suffix in PICKLED_SUFFIXES:
        if merging.base.container is None:
            raise CheckpointError(f"{output}: the base {merging.base.source} is no pickle; write .safetensors")
    elif output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: write .safetensors, or {', '.join(PICKLED_SUFFIXES)}")
