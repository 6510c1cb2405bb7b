"""The weights that a publisher reads: of one process, or of all processes of a sharded model; cast where asked for."""

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
from rst.numerics.exactness import RESIDUAL_DTYPES
from rst.shards.blocks import is_sharded, local
from rst.shards.collectives import is_first, tell_all, together
from rst.shards.layout import ShardLayout, find_layout
from rst.sync.live import live_weights
from rst.sync.state import fingerprint_state, hash_block, state_of

Result = TypeVar("Result")


class Change(NamedTuple):
    """What is new in one tensor: positions, and the values there before and now, all of shape (nnz,)."""

    positions: Tensor
    old: Tensor
    new: Tensor


class Parts(Mapping[str, Tensor]):
    """This process' part of each tensor, by canonical name, tied ones once; cast when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], tied: Mapping[str, str], dtype: torch.dtype | None) -> None:
        """Keep the tensors as they are."""
        self.tied = tied
        self._tensors, self._dtype = tensors, dtype

    def __getitem__(self, name: str) -> Tensor:
        """A part in the chain's dtype."""
        tensor = local(self._tensors[name])
        return tensor.to(self._dtype) if self._dtype and tensor.dtype in RESIDUAL_DTYPES else tensor

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._tensors)

    def specs(self) -> dict[str, TensorSpec]:
        """Dtype in the chain, and shape of the whole, of each tensor."""
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
    """Weights that this process has whole."""

    is_first = True

    def __init__(self, weights: Weights, dtype: torch.dtype | None) -> None:
        """Use `open_weights`."""
        self.weights, self.dtype = weights, dtype

    def read(self) -> Parts:
        """The weights as they are now."""
        own, tied = live_weights(self.weights)
        return Parts(own, tied, self.dtype)

    def state(self, parts: Parts) -> str:
        """Their state."""
        return fingerprint_state(parts)

    def collect(self, parts: Parts, changes: Mapping[str, Change]) -> Mapping[str, Change]:
        """The changes of whole tensors, in the first process."""
        return changes

    def whole(self, parts: Parts, names: Mapping[str, object]) -> Iterator[Tensor]:
        """Whole tensors, one at a time, on the CPU of the first process. Every process must come to the end of it."""
        return (parts[name].cpu() for name in names)

    def together(self, work: Callable[[], Result]) -> Result:
        """Do something that fails alike in all processes if it fails in one."""
        return work()

    def tell(self, found: Result) -> Result:
        """What the first process has found."""
        return found

    def first(self, work: Callable[[], Result]) -> Result:
        """What the first process makes of some work that it does alone."""
        found = self.together(lambda: work() if self.is_first else None)
        return self.tell(found)  # type: ignore[return-value]


class ShardedWeights(PublishedWeights):
    """A model of DTensors, of which each process has its part. All of its methods but `read` are collective."""

    weights: nn.Module

    def __init__(self, model: nn.Module, layout: ShardLayout, dtype: torch.dtype | None) -> None:
        """Use `open_weights`."""
        super().__init__(model, dtype)
        self._layout, self.is_first = layout, is_first()

    def read(self) -> Parts:
        """The weights as they are now."""
        return Parts(*_tensors_of(self.weights), self.dtype)

    def state(self, parts: Parts) -> str:
        """Each process hashes its blocks, at their places in the whole."""
        blocks = self._layout.blocks
        owned = [name for name in parts if self._layout.owns(name)]
        hashed = self.together(lambda: sum(hash_block(name, parts[name], blocks[name]) for name in owned))
        return state_of(parts.specs(), sum(tell_all(hashed)))

    def collect(self, parts: Parts, changes: Mapping[str, Change]) -> Mapping[str, Change]:
        """Bring the changes to the first process, at their places in the whole."""
        mine = {}
        for name in parts:
            nothing = torch.empty(0, dtype=parts.specs()[name][0])
            mine[name] = (torch.empty(0, dtype=torch.int64), nothing, nothing)
            if name in changes and self._layout.owns(name):
                positions, old, new = changes[name]
                mine[name] = self._layout.blocks[name].to_global(positions).cpu(), old.cpu(), new.cpu()
        everything = collect(self._layout, mine) or {}
        return {name: Change(*entries) for name, entries in everything.items() if entries[0].numel()}

    def whole(self, parts: Parts, names: Mapping[str, object]) -> Iterator[Tensor]:
        """Whole tensors, put together one at a time."""
        for name in names:
            whole = self._layout.assemble(name, parts[name])
            yield parts[name] if whole is None else whole

    def together(self, work: Callable[[], Result]) -> Result:
        """Do something that fails alike in all processes if it fails in one."""
        return together(work, self._layout.device)

    def tell(self, found: Result) -> Result:
        """What the first process has found."""
        return tell_all(found if self.is_first else None)[0]  # type: ignore[return-value]


def open_weights(weights: Weights, dtype: torch.dtype | None) -> PublishedWeights:
    """Weights to publish; collective where they are a model with DTensors. Raises as `find_layout`."""
    if isinstance(weights, nn.Module):
        sharded = any(is_sharded(weight) for weight in weights.parameters())
        layout = find_layout(weights, _tensors_of(weights)[0] if sharded else {})
        if layout is not None:
            return ShardedWeights(weights, layout, dtype)
    return PublishedWeights(weights, dtype)


def _tensors_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `live_weights`, where memory does not tell which tensors are tied: parts of them may be empty."""
    model = unwrap(model)
    state = model.state_dict(keep_vars=True)  # FSDP2 gives up what it has gathered
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
