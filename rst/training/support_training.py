"""Training a support: the kept weights of each parameter are one 1-D tensor, and nothing else has an optimiser state.

The gradient of a parameter is gathered at the support as soon as it is complete, and dropped, so that dense gradients
exist for one layer at a time; linear layers need none (`support_linear`). After a step, the values are written into the
weights.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rst.errors import ConfigError, ParameterMismatchError
from rst.numerics.kept_places import KeptPlaces
from rst.numerics.places import read_at, write_at_
from rst.shards.blocks import is_sharded, local
from rst.shards.collectives import together
from rst.shards.layout import ShardLayout
from rst.training.base_weights import BaseWeights
from rst.training.largest import LargestOfEach
from rst.training.moving_support import Move, check_states, move_states_
from rst.training.sharded_support import Entries, assemble, cut
from rst.training.sparse_base import SparseBaseWeights
from rst.training.support import Loss, Support
from rst.training.support_gradients import strongest
from rst.training.support_linear import SampledLayer, layer_of, pattern_of, pays
from rst.training.support_processes import average_in_backward, of_first_process

# Values are trained in at least float32: half precision would lose an optimiser's small steps.
_HALF = (torch.float16, torch.bfloat16)


@dataclass(eq=False)
class KeptWeights:
    """The trained part of one parameter.

    Attributes:
        name: name of the parameter.
        weight: the parameter, with w0 outside the support.
        places: the support and w0 there; for a sharded parameter, of this process' part.
        values: the tensor that the optimiser trains, shape (n,), in the parameter's dtype, or float32 for half
            precision.
    """

    name: str
    weight: nn.Parameter
    places: KeptPlaces
    values: nn.Parameter

    @classmethod
    def of(cls, name: str, weight: nn.Parameter, positions: Tensor, origin: Tensor | None) -> "KeptWeights":
        """Start from the weight as it is; `origin` is w0 there if it differs."""
        part = local(weight)
        here = positions.to(part.device)
        start = read_at(part, here)
        places = KeptPlaces(here, start if origin is None else origin.to(part.device))
        places.check(name, part)
        return cls(name, weight, places, nn.Parameter(start.float() if start.dtype in _HALF else start.clone()))

    @property
    def part(self) -> Tensor:
        """Return this process' part of the weight, in the same memory."""
        return local(self.weight)

    @torch.no_grad()
    def collect(self, gradient: Tensor) -> None:
        """Add the parameter's gradient at the support to that of the values."""
        found = read_at(gradient.to_dense() if gradient.is_sparse else local(gradient), self.places.positions)
        found = found.to(self.values.dtype)
        self.values.grad = found if self.values.grad is None else self.values.grad + found

    @torch.no_grad()
    def write(self) -> None:
        """Write the values into the weights."""
        write_at_(self.part, self.places.positions, self.values.to(self.weight.dtype))

    @torch.no_grad()
    def restore(self, places: KeptPlaces, values: Tensor) -> None:
        """Continue from another state with the same number of weights, whose positions may differ."""
        write_at_(self.part, self.places.positions, self.places.origin)
        self.places = places.to(self.part.device)
        self.values.copy_(values)
        self.write()

    @torch.no_grad()
    def move(self, move: Move) -> None:
        """Write w0 where an entry leaves, and start from w0 where one is new."""
        write_at_(self.part, self.places.positions, self.places.origin)
        origin = read_at(self.part, move.positions)  # w0 everywhere now
        values = move.apply(self.values.detach(), origin.to(self.values.dtype))
        self.restore(KeptPlaces(move.positions, origin), values)


# Largest relative distance between sampled and dense gradients: half precision rounds each slightly.
_ALIKE = 0.02


@dataclass(eq=False)
class Trial:
    """One step with both gradients of a linear layer, which detects code that uses the weight but not the layer.

    Attributes:
        kept: the layer's kept weights, trained with the dense gradient meanwhile.
        sampled: the sampled layer.
        probe: the tensor that receives the sampled gradient.
        dense: the sum of the dense gradients at the support.
    """

    kept: KeptWeights
    sampled: SampledLayer
    probe: Tensor
    dense: Tensor

    @classmethod
    def start(cls, kept: KeptWeights, layer: nn.Module) -> "Trial":
        """Start the trial of a layer."""
        probe = kept.values.detach().clone().requires_grad_()
        pattern = pattern_of(kept.places.positions, *kept.weight.shape)
        sampled = SampledLayer(layer, probe, pattern, transposed=not isinstance(layer, nn.Linear))
        sampled.start()
        return cls(kept, sampled, probe, torch.zeros_like(kept.values, requires_grad=False))

    @torch.no_grad()
    def again(self) -> None:
        """Discard the gradients so far, which were at other positions."""
        self.probe.grad = None
        self.dense.zero_()

    @torch.no_grad()
    def verdict(self) -> bool | None:
        """Compare: True freezes the weight and uses the sampled gradient from now on; None means too early."""
        length = self.dense.norm().item()
        if not math.isfinite(length):  # a step that the scaler skips
            self.again()
        if not 0 < length < math.inf:
            return None
        found = self.probe.grad
        if found is None or not (found - self.dense).norm().item() <= _ALIKE * length:
            self.sampled.stop()
            return False
        self.sampled.values = self.kept.values
        self.kept.weight.requires_grad_(False)
        return True


class SupportTraining:
    """All kept weights of a model, and the hooks that gather their gradients."""

    def __init__(
        self,
        model: nn.Module,
        sparse: Mapping[str, nn.Parameter],
        support: Support,
        layout: ShardLayout | None = None,
    ) -> None:
        """Check the support against the sparsely trained parameters, and freeze those outside it.

        For a model that FSDP2 shards, which has a `layout`, each process trains the weights in its own blocks.

        Raises:
            ConfigError: the support names a parameter that is not trained.
            ParameterMismatchError: a shape differs.
        """
        for name, positions in support.items():
            if name not in sparse:
                raise ConfigError(
                    f"has {positions.numel()} weights of the support, but is not among the {len(sparse)} parameters "
                    f"that the configuration trains sparsely",
                    parameter=name,
                )
            if tuple(sparse[name].shape) != support.shapes[name]:
                raise ParameterMismatchError(
                    f"the support is for {support.shapes[name]}, but the model has {tuple(sparse[name].shape)}",
                    parameter=name,
                )
        if not len(support):
            raise ConfigError("the support has no weight to train")
        self._layout = layout
        entries = {name: self._own(name, _entries(support, name)) for name in support}
        self.kept = {
            name: KeptWeights.of(name, sparse[name], own["positions"], own.get("origin"))
            for name, own in entries.items()
        }
        for name in sparse.keys() - self.kept.keys():
            sparse[name].requires_grad_(False)
        self._paused = False
        self._dense = {name: self._gather(kept) for name, kept in self.kept.items()}
        self._trials: dict[str, Trial] = {}
        self._sampled: dict[str, SampledLayer] = {}
        for name, kept in self.kept.items():
            layer = None if is_sharded(kept.weight) else layer_of(name, kept.weight, model)
            if layer is not None and pays(kept.weight, kept.values.numel()):
                trial = self._trials[name] = Trial.start(kept, layer)
                self._sampled[name] = trial.sampled
        whole = [kept for kept in self.kept.values() if not is_sharded(kept.weight)]
        average_in_backward([kept.values for kept in whole], also=[kept.weight for kept in whole])

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what an optimiser trains, by the name of the parameter that it belongs to."""
        return {name: kept.values for name, kept in self.kept.items()}

    def stand_in(self, base: BaseWeights, *, restored_later: bool = False) -> None:
        """Use the support and w0 there as w0; the weights may still have to be restored to match."""
        assert isinstance(base, SparseBaseWeights)
        for name in base.names_of_parameters:
            if name in self.kept:
                base.replace(name, self.kept[name].places, restored_later=restored_later)
            elif restored_later:
                base.replace(name, base.places[name], restored_later=True)

    def check(self, base: BaseWeights) -> None:
        """Raise `ConfigError` if something else has written to the weights."""
        assert isinstance(base, SparseBaseWeights)
        for name, kept in self.kept.items():
            base.check(name, kept.part)

    def write(self, base: BaseWeights) -> None:
        """Write the values into the weights, and switch layers whose sampled gradient is right to that gradient.

        Raises:
            ConfigError: something else has written to the weights.
        """
        self.check(base)
        for kept in self.kept.values():
            kept.write()
        self.stand_in(base)
        for name, trial in list(self._trials.items()):
            passed = trial.verdict()
            if passed:
                self._dense[name].remove()
            if passed is False:
                del self._sampled[name]
            if passed is not None:
                del self._trials[name]

    def move(
        self, model: nn.Module, batches: Iterable[Any], share: float, loss: Loss, optimizer: torch.optim.Optimizer
    ) -> int:
        """Move a share of each parameter's kept weights; see `ResidualSparseTrainer.move_support`.

        Raises:
            ConfigError: there are gradients, or no batch, or an optimiser's state does not have one entry per weight;
                nothing has changed then.
        """
        values = self.parameters()
        for name, one in values.items():
            if one.grad is not None:
                raise ConfigError("the support already has gradients; call zero_grad() first", parameter=name)
        check_states(optimizer, values)
        counts = {name: round(share * one.numel()) for name, one in values.items()}
        counts = {name: count for name, count in counts.items() if count}
        with self._pause():
            found: Mapping[str, Tensor] = strongest(
                model,
                {name: self.kept[name].weight for name in counts},
                batches,
                lambda times: LargestOfEach({name: times * count for name, count in counts.items()}),
                loss,
                taken={name: self.kept[name].places.positions for name in counts},
            )
        found = of_first_process(found)
        for name, grown in found.items():
            kept = self.kept[name]
            move = Move.plan(kept.places, kept.values.detach(), grown.to(kept.weight.device))
            kept.move(move)
            move_states_(optimizer, kept.values, move)
            self._follow(name)
        return sum(grown.numel() for grown in found.values())

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Stop collecting gradients, and clear them at the end."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False
            for one in self.parameters().values():
                one.grad = None  # zeros if the processes averaged them

    @property
    def paused(self) -> bool:
        """Return whether collecting gradients is paused."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        for sampled in self._sampled.values():
            sampled.paused = paused

    def _follow(self, name: str) -> None:
        """Sample at the current positions of a parameter's kept weights."""
        if name in self._sampled:
            self._sampled[name].move(self.kept[name].places.positions)
        if name in self._trials:
            self._trials[name].again()

    @torch.no_grad()
    def start_from_weights(self) -> None:
        """Continue from the weights as they are at the support."""
        for kept in self.kept.values():
            kept.values.copy_(read_at(kept.part, kept.places.positions))

    def state_dict(self) -> dict[str, Entries]:
        """Return positions, w0 there, and the trained values by parameter; all of a sharded model (collective)."""
        own: dict[str, Entries] = {
            name: {"positions": kept.places.positions, "origin": kept.places.origin, "values": kept.values.detach()}
            for name, kept in self.kept.items()
        }
        return assemble(own, self._layout) if self._layout else own

    def load(self, state: Any) -> None:
        """Continue from another state, whose support may differ.

        Raises:
            ConfigError: it is not a state, or has another number of weights in a parameter; nothing has changed then.
            ParameterMismatchError: its positions do not fit the parameter.
        """
        layout = self._layout
        found = together(lambda: self._read(state), layout.device) if layout else self._read(state)
        for name, kept in self.kept.items():
            kept.restore(*found[name])
            self._follow(name)

    def _read(self, state: Any) -> dict[str, tuple[KeptPlaces, Tensor]]:
        found = state if isinstance(state, Mapping) else {}
        read = {}
        for name in sorted(found.keys() | self.kept.keys()):
            one = found.get(name)
            given = {key: one.get(key) for key in _PARTS} if isinstance(one, Mapping) else {}
            parts: Entries = {key: part for key, part in given.items() if isinstance(part, Tensor)}
            if len(parts) != len(_PARTS) or name not in self.kept:
                raise ConfigError("the state and the support do not both train this parameter", parameter=name)
            kept = self.kept[name]
            KeptPlaces(parts["positions"], parts["origin"]).check(name, kept.weight)
            if parts["values"].shape == parts["origin"].shape:
                parts = self._own(name, parts)
            if parts["origin"].shape != kept.values.shape or parts["values"].shape != kept.values.shape:
                raise ConfigError(
                    f"the state trains {parts['values'].numel()} weights, but the support has {kept.values.numel()}",
                    parameter=name,
                )
            read[name] = (KeptPlaces(parts["positions"], parts["origin"]), parts["values"])
        return read

    def _own(self, name: str, entries: Entries) -> Entries:
        """Return the entries that this process trains."""
        return cut(entries, self._layout.blocks[name]) if self._layout else entries

    def _gather(self, kept: KeptWeights) -> RemovableHandle:
        def hook(weight: Tensor) -> None:
            if self._paused:
                return
            gradient, weight.grad = weight.grad, None
            if gradient is None:
                raise ConfigError(
                    "another trainer with a support has taken the gradient; call its detach() first",
                    parameter=kept.name,
                )
            kept.collect(gradient)
            if kept.name in self._trials:
                self._trials[kept.name].dense += read_at(gradient, kept.places.positions)

        handle: RemovableHandle = kept.weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        return handle


_PARTS = ("positions", "origin", "values")


def _entries(support: Support, name: str) -> Entries:
    origin = {"origin": support.origins[name]} if name in support.origins else {}
    return {"positions": support[name], **origin}
