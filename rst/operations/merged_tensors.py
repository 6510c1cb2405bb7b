"""The tensors of a base with a delta added, computed one at a time."""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint
from rst.checkpoints.read_ahead import read_ahead
from rst.delta.parameter_delta import ParameterDelta, check_carried, gather
from rst.delta.sparse_delta import SparseDelta
from rst.delta.validation import validate
from rst.errors import WrongBaseError, naming_file
from rst.files.safetensors_writer import WEIGHTS_OF_TORCH, TensorSpec
from rst.files.weight_index import bytes_of
from rst.numerics.exactness import bits, bytes_of_tensor
from rst.numerics.fingerprint import digest
from rst.operations.base_checks import names_in_base, warn_if_trained_quantized
from rst.operations.extraction import Progress
from rst.operations.stored_twice import warn_of_twins


class MergedTensors:
    """A base and a delta whose names, shapes and dtypes have been checked against each other."""

    def __init__(self, base: Checkpoint, delta: SparseDelta) -> None:
        """Check the delta against the base. Raises `ParameterMismatchError` and `DeltaFormatError`."""
        self.base = base = base.named_as([*delta, *delta.dense])
        self.delta = delta
        self.changed: dict[str, ParameterDelta] = {}
        self.whole: dict[str, Tensor] = {}
        validate(delta.parameters, "delta")
        warn_if_trained_quantized(delta, stacklevel=3)
        for name, change in delta.parameters.items():
            for present in names_in_base(name, delta, base):
                self.changed[present] = change
        for name, tensor in delta.dense.items():
            aliases = [alias for alias in delta.names_of(name) if alias in base]
            self.whole |= dict.fromkeys([name, *aliases], tensor)
        said = {alias for name in (*delta, *delta.dense) for alias in delta.names_of(name)}
        self._change_shared(said)
        changed = [name for name in (*self.changed, *self.whole) if name in base]
        warn_of_twins(base, changed, said)

    def _change_shared(self, said: Collection[str]) -> None:
        """Change all names of shared memory, as on a live module; a delta made from files may know only one of them."""
        for owner in {*self.base.tied.values()}:
            names = [owner, *(alias for alias, other in self.base.tied.items() if other == owner)]
            unsaid = [name for name in names if name not in said]
            for name in names:
                if name in self.changed:
                    self.changed |= dict.fromkeys(unsaid, self.changed[name])
                elif name in self.whole:
                    self.whole |= dict.fromkeys(unsaid, self.whole[name])

    def specs(self) -> dict[str, TensorSpec]:
        """Return dtype and shape of every merged tensor, by plain name."""
        specs = {name: _spec(self.base.outline(name)) for name in self.base}
        return specs | {name: _spec(tensor) for name, tensor in self.whole.items()}

    def tensor(self, name: str) -> Tensor:
        """Return one merged tensor; the base's own if nothing changed. Raises `WrongBaseError`."""
        if name in self.whole:
            return self.whole[name]
        if name not in self.changed:
            return self.base[name]
        change, origin = self.changed[name], self.base[name].detach()
        with naming_file(self.base.source):
            check_carried(name, origin)
        if change.base is not None and (found := digest(origin)) != change.base.whole:
            raise WrongBaseError(
                f"not the tensor the delta was made from (BLAKE3 {found[:12]}, expected {change.base.whole[:12]})",
                file=self.base.source,
                parameter=name,
            )
        merged = origin.clone(memory_format=torch.contiguous_format)
        change = change.to(merged.device)
        positions = change.indices.long()
        flat = merged.view(-1)
        bits(flat).index_copy_(0, positions, bits(change.tuned_values(gather(flat, positions))))
        return merged

    def original(self, name: str) -> str:
        """Return the base's own name for a tensor, with its wrapper's prefix; new tensors get the same prefix."""
        known = self.base.original_names
        prefixes = (own.removesuffix(plain) for plain, own in known.items() if own.endswith(plain))
        return known[name] if name in known else next(prefixes, "") + name

    def place(self, name: str) -> tuple[str, str]:
        """Return the model of a pipeline that a tensor belongs to, or an empty string, and its name in its file."""
        parts = [part for part in self.base.parts if name.startswith(f"{part}.")]
        if not self.base.parts:
            return "", self.original(name)
        part = max(parts, key=len, default="")
        known = self.base.original_names.get(name)
        return part, known.removeprefix(f"{part}/") if known else name.removeprefix(f"{part}.")

    def metadata(self, part: str = "") -> dict[str, str]:
        """Return the merged file's header: the base's entries, and that it holds torch tensors."""
        base = self.base.parts[part] if part else self.base
        return {**WEIGHTS_OF_TORCH, **base.metadata}

    def in_memory(self, on_progress: Progress | None = None) -> dict[str, Tensor]:
        """Return all merged tensors under the base's own names; tied ones stay one tensor."""
        specs = self.specs()
        shared = {alias: owner for alias, owner in self.base.tied.items() if self._alike(alias, owner)}
        own = {name: spec for name, spec in specs.items() if name not in shared}
        # strict exhausts the stream, which checks the base's files once more at its end
        merged = dict(zip(own, self.stream(own, on_progress), strict=True))
        return {self.original(name): merged[shared.get(name, name)] for name in specs}

    def _alike(self, alias: str, owner: str) -> bool:
        """Return whether two names of one base tensor are still one afterwards; tuning may have untied them."""
        same_change = self.changed.get(alias) is self.changed.get(owner)
        return same_change and self.whole.get(alias) is self.whole.get(owner)

    def stream(self, specs: Mapping[str, TensorSpec], on_progress: Progress | None) -> Iterator[Tensor]:
        """Yield the merged tensors named in `specs`, one after another."""
        total = bytes_of(specs.values())
        done, written = 0, ""
        for name in read_ahead([*specs], self.base):
            tensor = self.tensor(name)
            if name in self.changed:
                self.base.release(name)  # copied
            yield tensor
            self.base.release(written)  # a writer may still use the last tensor, but not the one before
            written = name
            done += bytes_of_tensor(tensor)
            if on_progress:
                on_progress(done, total)
        self.base.check_unchanged()


def _spec(tensor: Tensor) -> TensorSpec:
    return tensor.dtype, (tensor.numel(),) if tensor.is_nested else tuple(tensor.shape)
