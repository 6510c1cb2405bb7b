"""Applying a delta to a sharded model: each process changes its own shard, and all of them do or none."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from rst.checkpoints.delta_in_module import in_module
from rst.checkpoints.transformers_files import coordinates_of
from rst.delta.parameter_delta import ParameterDelta, gather
from rst.delta.sparse_delta import SparseDelta
from rst.delta.validation import validate
from rst.errors import ConfigError, ParameterMismatchError
from rst.live.apply import Places, PreparedDelta, find_place, places_of, prepare_at, untied_like
from rst.naming import unwrap
from rst.numerics.fingerprint import digest
from rst.shards.blocks import Block, local
from rst.shards.collectives import tell_all, together
from rst.shards.layout import ShardLayout, find_layout
from rst.training.tracking import live_tensors


class PreparedShards:
    """A delta prepared for a sharded model: call `apply()` and `remove()` in every process, as often as you like."""

    def __init__(self, model: nn.Module, layout: ShardLayout, mine: PreparedDelta) -> None:
        """Create with `apply_sharded`, which checks everything first."""
        self._model, self._layout, self._mine = model, layout, mine

    @property
    def applied(self) -> bool:
        """Whether the delta is applied."""
        return self._mine.applied

    def apply(self) -> "PreparedShards":
        """Replace the base's elements by the tuned ones, and return itself. Does nothing if applied. Collective.

        Raises:
            WrongBaseError: the model no longer has the base's elements in some process; all raise, none is changed.
            ParameterMismatchError: a tensor is missing, or has another shape than when the delta was prepared.
        """
        self._switch(self._mine.apply, self._mine.remove)
        return self

    def remove(self) -> None:
        """Restore every overwritten element, bit for bit. Does nothing if not applied. Collective.

        Raises:
            RSTError: as `PreparedDelta.remove`, in any process; all raise, none is changed.
        """
        self._switch(self._mine.remove, self._mine.apply)

    def __enter__(self) -> "PreparedShards":
        """Apply."""
        return self.apply()

    def __exit__(self, *_: object) -> None:
        """Remove."""
        self.remove()

    def _switch(self, there: Callable[[], object], back: Callable[[], object]) -> None:
        live_tensors(self._model)  # makes FSDP2 free what it has gathered, which would outlive the change
        try:
            together(there, self._layout.device)
        except BaseException:
            back()
            raise


@torch.no_grad()
def apply_sharded(model: nn.Module, delta: SparseDelta) -> PreparedShards:
    """Change a model of DTensors in place, each process its own shard, all or nothing. Collective.

    >>> with apply_sharded(model, SparseDelta.load("delta.safetensors")):
    ...     model(images)  # tuned
    >>> model(images)  # the base again, every byte

    The first process gathers the base's values at the changed positions, one parameter at a time, to compare them with
    the delta's digest. Each process keeps the new and old elements of its own shard.

    Args:
        model: sharded by `fully_shard` or `parallelize_module`; it holds the base weights.
        delta: the delta, which must be the same in every process.

    Raises:
        ConfigError: no tensor of the model is sharded.
        DeltaFormatError: a change is malformed.
        ParameterMismatchError: the model lacks a tensor, or has it in another shape or dtype, or the deltas differ.
        WrongBaseError: the weights at the changed positions are not those the delta was made from.
    """
    model = unwrap(model)
    live = live_tensors(model)
    layout = find_layout(model, live)
    if layout is None:
        raise ConfigError("no parameter of the model is a DTensor; call delta.apply(model)")
    _check_same(delta, layout)
    every = {name: place.tensor for name, place in places_of(model).items() if place.tensor is not None}
    delta = untied_like(every, in_module(delta, coordinates_of(model), live))
    names = together(lambda: _names(model, live, delta, layout), layout.device)
    mine = _my_part(delta, names, layout)
    parts = {name: place._replace(owner=_Parts(place.owner)) for name, place in places_of(model).items()}
    prepared = together(lambda: _prepare(parts, mine), layout.device)
    _check_base(delta, mine, names, {name: local(live[owner]) for name, owner in names.items()}, layout)
    return PreparedShards(model, layout, prepared).apply()


class _Parts(Mapping[str, Tensor | None]):
    """This process' parts of a module's tensors, read on access."""

    def __init__(self, siblings: Mapping[str, Tensor | None]) -> None:
        self._siblings = siblings

    def __getitem__(self, attribute: str) -> Tensor | None:
        tensor = self._siblings[attribute]
        return None if tensor is None else local(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._siblings)

    def __len__(self) -> int:
        return len(self._siblings)


def _check_same(delta: SparseDelta, layout: ShardLayout) -> None:
    """Raise, in every process, unless the delta is valid and the same in all."""
    together(lambda: validate(delta.parameters, "delta"), layout.device)
    digests = tell_all(delta.digest())
    if different := [rank for rank, found in enumerate(digests) if found != digests[0]]:
        raise ParameterMismatchError(
            f"rank {different[0]} has another delta than rank 0; pass the same delta in every process"
        )


def _names(model: nn.Module, live: Mapping[str, Tensor], delta: SparseDelta, layout: ShardLayout) -> dict[str, str]:
    """Return the model's own name for each tensor of the delta, checking its shape."""
    owner_of = {id(tensor): name for name, tensor in live.items()}
    places = places_of(model)
    shapes = {name: change.shape for name, change in delta.parameters.items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in delta.dense.items()}
    names = {}
    for name, shape in shapes.items():
        tensor = find_place(name, places, delta).tensor
        names[name] = owner = owner_of.get(id(tensor), name)
        if owner not in layout.blocks:
            raise ParameterMismatchError("in the delta, but the model's state dict does not contain it", parameter=name)
        if (found := layout.blocks[owner].shape) != shape:
            raise ParameterMismatchError(f"the delta is for {shape}, but the model has {found}", parameter=name)
    return names


def _my_part(delta: SparseDelta, names: Mapping[str, str], layout: ShardLayout) -> SparseDelta:
    """Return the delta of this process' blocks, as if each were a parameter of its own."""
    blocks = {name: layout.blocks[owner] for name, owner in names.items()}
    return replace(
        delta,
        parameters={name: _cut(change, blocks[name]) for name, change in delta.parameters.items()},
        dense={name: tensor[blocks[name].slices].clone() for name, tensor in delta.dense.items()},
    )


def _cut(change: ParameterDelta, block: Block) -> ParameterDelta:
    """Return the entries of a change in a block, without the base's digest, which covers the whole parameter."""
    chosen, positions = block.cut(change.indices.long().cpu())
    exact, exact_positions = block.cut(change.exact_indices.long().cpu())
    return replace(
        change.to("cpu"),
        indices=positions,
        values=gather(change.values.cpu(), chosen),
        shape=block.size,
        exact_indices=exact_positions,
        exact_values=gather(change.overlay.cpu(), exact),
        base=None,
    )


def _check_base(
    delta: SparseDelta, mine: SparseDelta, names: Mapping[str, str], parts: Mapping[str, Tensor], layout: ShardLayout
) -> None:
    """Raise `WrongBaseError`, in every process, unless the base has the values that the delta was made from."""
    found: dict[str, str] = {}
    for name, change in delta.parameters.items():
        if change.base is not None:
            origin = gather(parts[name].reshape(-1), mine[name].indices.to(parts[name].device))
            whole = layout.gather_at(names[name], change.indices.long().cpu(), origin.cpu())
            if whole is not None:
                found[name] = digest(whole)

    def check() -> None:
        for name in found:
            delta[name].check_touched(name, found[name])

    together(check, layout.device)


def _prepare(places: Places, mine: SparseDelta) -> PreparedDelta:
    return prepare_at(places, replace(mine, parameters={name: part for name, part in mine.items() if part.nnz}))
