"""The weights that a publisher reads: of one process, or of all processes of a sharded model; cast if requested."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rst.checkpoints.checkpoint import Weights
from rst.checkpoints.transformers_files import coordinates_of
from rst.distributed.entries import collect
from rst.errors import NotCarriedError
from rst.files.safetensors_writer import TensorSpec, by_width
from rst.naming import plain_name, unwrap
from rst.numerics.exactness import RESIDUAL_DTYPES, bits
from rst.shards.blocks import is_sharded, local
from rst.shards.collectives import is_first, tell_all, together
from rst.shards.layout import ShardLayout, find_layout
from rst.sync.block_words import BlockWords
from rst.sync.hashing import hash_at
from rst.sync.live import live_weights
from rst.sync.state import changed_state, fingerprint_state, hash_change, hash_changes, seed_of, state_of
from rst.sync.words import Words, touched_words, weights_a_word, words_with

Specs = Mapping[str, TensorSpec]
Result = TypeVar("Result")


class Change(NamedTuple):
    """The changes of one tensor: positions, and the old and new values there, all of shape (nnz,)."""

    positions: Tensor
    old: Tensor
    new: Tensor


class Parts(Mapping[str, Tensor]):
    """This process' part of each tensor, by canonical name, tied ones once; cast on access."""

    def __init__(self, tensors: Mapping[str, Tensor], tied: Mapping[str, str], dtype: torch.dtype | None) -> None:
        """Store the tensors without copying."""
        self.tied = tied
        self._tensors, self._dtype = tensors, dtype

    def __getitem__(self, name: str) -> Tensor:
        """Return a part in the chain's dtype."""
        tensor = local(self._tensors[name])
        return tensor.to(self._dtype) if self._dtype and tensor.dtype in RESIDUAL_DTYPES else tensor

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._tensors)

    def specs(self) -> dict[str, TensorSpec]:
        """Return each tensor's dtype in the chain and the shape of the whole."""
        return by_width(
            {
                name: (
                    self._dtype if self._dtype and tensor.dtype in RESIDUAL_DTYPES else tensor.dtype,
                    (*tensor.shape,),
                )
                for name, tensor in self._tensors.items()
            }
        )


class PublishedWeights:
    """Weights that this process holds completely."""

    is_first = True

    def __init__(self, weights: Weights, dtype: torch.dtype | None) -> None:
        """Create with `open_weights`."""
        self.weights, self.dtype = weights, dtype

    def read(self) -> Parts:
        """Return the current weights."""
        own, tied = live_weights(self.weights)
        return Parts(own, tied, self.dtype)

    def state(self, parts: Parts, version: int) -> str:
        """Return the state of the parts in a chain of a version."""
        return fingerprint_state(parts, version)

    def changed_state(
        self, state: str, before: Mapping[str, Tensor], changes: Mapping[str, Change], specs: Specs, version: int
    ) -> str:
        """Return the state after the changes of this process and all others.

        Args:
            state: state of the weights before.
            before: these weights, flat: this process' part of each.
            changes: the changes of these parts.
            specs: dtype and shape of the whole of each tensor.
            version: version of the chain.
        """
        words = {
            name: touched_words(before[name], positions, new, weights_a_word(specs[name][0], version))
            for name, (positions, _, new) in changes.items()
        }
        return changed_state(state, hash_changes(specs, words))

    def collect(self, parts: Parts, changes: Mapping[str, Change]) -> Mapping[str, Change]:
        """Return the changes of whole tensors, in the first process."""
        return changes

    def whole(self, parts: Parts, names: Mapping[str, object]) -> Iterator[Tensor]:
        """Yield whole tensors, one at a time, on the first process' CPU. Every process must exhaust it."""
        return (parts[name].cpu() for name in names)

    def together(self, work: Callable[[], Result]) -> Result:
        """Do `work`; a failure in one process raises in all."""
        return work()

    def tell(self, found: Result) -> Result:
        """Return the first process' value in all processes."""
        return found

    def first(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`, which the first process alone does."""
        found = self.together(lambda: work() if self.is_first else None)
        return self.tell(found)  # type: ignore[return-value]


class ShardedWeights(PublishedWeights):
    """A model of DTensors, of which each process holds its part. All methods but `read` are collective."""

    weights: nn.Module

    def __init__(self, model: nn.Module, layout: ShardLayout, dtype: torch.dtype | None) -> None:
        """Create with `open_weights`."""
        super().__init__(model, dtype)
        self._layout, self.is_first = layout, is_first()

    def read(self) -> Parts:
        """Return the current weights."""
        return Parts(*_tensors_of(self.weights), self.dtype)

    def state(self, parts: Parts, version: int) -> str:
        """Hash the words in each process' blocks, at their places in the whole; the first hashes those across."""

        def hash_mine() -> tuple[int, dict[str, Change]]:
            hashed, edges = 0, {}
            for name, words in self._words(specs, version).items():
                part = parts[name].reshape(-1)
                hashed += words.hash_inside(seed_of(name, *specs[name]), part)
                at = words.edges().to(part.device)
                edges[name] = Change(at, bits(part)[at], bits(part)[at])
            return hashed, edges

        specs = parts.specs()
        hashed, edges = self.together(hash_mine)
        across = self._across_blocks(edges, specs, version)
        first = sum(hash_at(seed_of(name, *specs[name]), words.places, words.new) for name, words in across.items())
        return state_of(specs, sum(tell_all(hashed + first)))

    def changed_state(
        self, state: str, before: Mapping[str, Tensor], changes: Mapping[str, Change], specs: Specs, version: int
    ) -> str:
        """Do the same as with one process; the first assembles the words across blocks, changed or not."""

        def hash_mine() -> tuple[int, dict[str, Change]]:
            hashed, edges = 0, {}
            for name, words in self._words(specs, version).items():
                at, part = words.edges().to(before[name].device), bits(before[name])
                old = new = part[at]
                if name in changes:
                    positions, _, values = changes[name]
                    hashed += hash_change(name, *specs[name], words.touched(part, positions, bits(values)))
                    here = torch.isin(positions, at)
                    new = old.clone()
                    new[torch.searchsorted(at, positions[here])] = bits(values)[here]
                edges[name] = Change(at, old, new)
            return hashed, edges

        hashed, edges = self.together(hash_mine)
        across = self._across_blocks(edges, specs, version)
        first = sum(hash_change(name, *specs[name], words) for name, words in across.items())
        return changed_state(state, sum(tell_all(hashed + first)))

    def _words(self, specs: Specs, version: int) -> dict[str, BlockWords]:
        """Return the words of the blocks that this process owns."""
        each = {name: weights_a_word(dtype, version) for name, (dtype, _) in specs.items()}
        return {n: BlockWords(self._layout.blocks[n], each[n]) for n in specs if self._layout.owns(n)}

    def _across_blocks(self, edges: Mapping[str, Change], specs: Specs, version: int) -> dict[str, Words]:
        """Return, in the first process, the words that span blocks. `edges` holds this process' parts of them."""
        across = {}
        for name, (positions, old, new) in self._bring(edges, specs).items():
            each = weights_a_word(specs[name][0], version)
            places, which = torch.unique_consecutive(positions // each, return_inverse=True)
            slots, count = which * each + positions % each, places.numel()
            across[name] = Words(places, *(words_with(slots, values, count, each) for values in (old, new)))
        return across

    def collect(self, parts: Parts, changes: Mapping[str, Change]) -> Mapping[str, Change]:
        """Gather the changes in the first process, at their places in the whole."""
        return self._bring(changes, parts.specs())

    def _bring(self, changes: Mapping[str, Change], specs: Specs) -> Mapping[str, Change]:
        mine = {}
        for name, (dtype, _) in specs.items():
            nothing = torch.empty(0, dtype=dtype)
            mine[name] = (torch.empty(0, dtype=torch.int64), nothing, nothing)
            if name in changes and self._layout.owns(name):
                positions, old, new = changes[name]
                place = self._layout.blocks[name].to_global(positions)
                mine[name] = place.cpu(), old.view(dtype).cpu(), new.view(dtype).cpu()
        everything = collect(self._layout, mine) or {}
        return {name: Change(*entries) for name, entries in everything.items() if entries[0].numel()}

    def whole(self, parts: Parts, names: Mapping[str, object]) -> Iterator[Tensor]:
        """Yield whole tensors, assembled one at a time."""
        for name in names:
            whole = self._layout.assemble(name, parts[name])
            yield parts[name] if whole is None else whole

    def together(self, work: Callable[[], Result]) -> Result:
        """Do `work`; a failure in one process raises in all."""
        return together(work, self._layout.device)

    def tell(self, found: Result) -> Result:
        """Return the first process' value in all processes."""
        return tell_all(found if self.is_first else None)[0]  # type: ignore[return-value]


def open_weights(weights: Weights, dtype: torch.dtype | None) -> PublishedWeights:
    """Open weights to publish; collective for a model with DTensors. Raises as `find_layout`."""
    if isinstance(weights, nn.Module):
        sharded = any(is_sharded(weight) for weight in weights.parameters())
        layout = find_layout(weights, _tensors_of(weights)[0] if sharded else {})
        if layout is not None:
            return ShardedWeights(weights, layout, dtype)
    return PublishedWeights(weights, dtype)


def _tensors_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Do what `live_weights` does where memory does not show ties, because parts may be empty."""
    model = unwrap(model)
    state = model.state_dict(keep_vars=True)  # makes FSDP2 free what it has gathered
    coordinates, owners = coordinates_of(model), dict[int, str]()
    tensors, tied = {}, {}
    for name, tensor in ((plain_name(original), tensor) for original, tensor in state.items()):
        if id(tensor) in owners:
            tied[name] = owners[id(tensor)]
            continue
        files = coordinates.files_of(name)
        if len(files) != 1 or coordinates.is_moved(files[0]):
            raise NotCarriedError(
                f"the checkpoint files have it as {', '.join(files)}, with its elements elsewhere; a sharded model is "
                "published only where they lie as in the files",
                parameter=name,
            )
        owners[id(tensor)] = files[0]
        tensors[files[0]] = tensor
    return tensors, tied
