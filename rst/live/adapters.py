"""The adapters of an `RSTModel`: one that is stored, one that is in training. Both go on and off the base in place."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from rst.config import RSTConfig
from rst.delta.parameter_delta import changed_weights, is_judged
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ConfigError, RSTError
from rst.live.apply import PreparedDelta, places_of, prepare
from rst.live.patch import EVERYTHING, LiveTensor, Patch, PatchGroup, elements
from rst.live.undo import UndoOnError
from rst.naming import unwrap
from rst.numerics.exactness import bit_equal, same_form
from rst.operations.cast import cast
from rst.training.support import Support
from rst.training.tracking import live_tensors
from rst.training.trainer import ResidualSparseTrainer

_DENSE = 3  # a change at a position takes the place of three weights, or more


class Adapter(Protocol):
    """What `RSTModel` asks of its adapters."""

    @property
    def delta(self) -> SparseDelta:
        """The change as it is now; of one in training, only while it is on."""
        ...

    @property
    def dsp(self) -> int:
        """Parameters to store as it is now; the weights are left alone."""
        ...

    @property
    def is_on(self) -> bool:
        """Whether the change is in the base's weights."""
        ...

    def on(self) -> None:
        """Put the change into the base's weights, or raise with nothing changed. Off before."""
        ...

    def off(self) -> None:
        """Put the base's bytes back, or raise with nothing changed. On before."""
        ...

    def discard(self) -> None:
        """Put the base's bytes back, on or off before, for the last time."""
        ...

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> "Adapter":
        """The adapter of the base, still in its old dtypes, in new ones. Off before."""
        ...


class StoredAdapter:
    """A delta, prepared for the module when it is first used."""

    def __init__(self, module: nn.Module, delta: SparseDelta) -> None:
        """Keep `delta` for `module`, which is the base."""
        self._module = module
        self._delta = delta
        self._prepared: PreparedDelta | None = None

    @property
    def delta(self) -> SparseDelta:
        """The delta."""
        return self._delta

    @property
    def dsp(self) -> int:
        """`SparseDelta.dsp`."""
        return self._delta.dsp()

    @property
    def is_on(self) -> bool:
        """Whether it is in the base's weights."""
        return self._prepared is not None and self._prepared.applied

    def prepare(self) -> PreparedDelta:
        """Check the delta against the base, which must be without adapters. Raises as `rst.live.apply.prepare`."""
        if self._prepared is None:
            self._prepared = prepare(self._module, self._delta)
        return self._prepared

    def on(self) -> None:
        """Exchange the changed weights. Raises as `rst.live.apply.prepare`; the base is unchanged then."""
        self.prepare().apply()

    def off(self) -> None:
        """Put the overwritten weights back, bit for bit."""
        self.prepare().remove()

    def discard(self) -> None:
        """Put the overwritten weights back if it is on."""
        if self.is_on:
            self.off()

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> "StoredAdapter":
        """Cast the tuned weights. What was prepared is not kept: it would keep the memory that the base leaves."""
        return StoredAdapter(self._module, cast(self._delta, self._module, dtypes))


class TrainingAdapter:
    """A change in the making: a `ResidualSparseTrainer`, whose weights can step aside and come back."""

    def __init__(self, module: nn.Module, config: RSTConfig, support: Support | None = None) -> None:
        """Start training at the base's weights, with the change on (there is none yet)."""
        live = live_tensors(unwrap(module))
        self.trainer = ResidualSparseTrainer(module, config, support=support)
        # The trainer keeps w0 of what it selects from; these are the others that training moves.
        moving = (*self.trainer.tracked.saved, *self.trainer.tracked.buffers)
        self._originals = {name: live[name].detach().clone() for name in moving}
        self._away: PreparedDelta | None = None
        self._requires_grad: dict[str, bool] = {}  # as it was found when the change stepped aside
        self.delta_while_off: SparseDelta | None = None
        """What the bank has exported since, for those who ask again."""

    @property
    def delta(self) -> SparseDelta:
        """The change so far, while it is on: extracting it selects once more."""
        return self.trainer.export()

    @property
    def dsp(self) -> int:
        """The weights that have moved so far, and those saved whole."""
        if self._away:
            sparse = self.trainer.tracked.sparse
            moved = sum(patch.changed for patch in self._away.patches if patch.live.name in sparse)
        else:
            moved = self.trainer.count_changed()
        live = live_tensors(self.trainer.model)
        saved = [live[name] for name in self.trainer.tracked.saved]
        return moved + sum(weight.numel() for weight in saved if isinstance(weight, nn.Parameter))

    @property
    def is_on(self) -> bool:
        """Whether it is in the base's weights, and trains."""
        return self._away is None

    def continue_from(self, delta: SparseDelta) -> None:
        """Go on from a delta that was saved: put it into the weights for good, with the trainer's w0 below it."""
        self.trainer.continue_from(delta)

    @torch.no_grad()
    def off(self) -> None:
        """Put the base back, and let no gradient and no optimiser touch it meanwhile."""
        away, trained = self._step_aside(), self._trained()
        found = {name: parameter.requires_grad for name, parameter in trained.items()}

        def undo() -> None:
            away.apply()
            self._away = None
            self._allow_training(found)

        with UndoOnError(undo):
            away.remove()
            self.trainer.weights_are_back()
            self._away, self._requires_grad, self.delta_while_off = away, found, None
            self._allow_training(dict.fromkeys(found, False))

    def on(self) -> None:
        """Put the change back, with the `requires_grad` that was found, and go on training."""
        assert self._away is not None
        away = self._away

        def undo() -> None:
            away.remove()
            self._away = away
            self._allow_training(dict.fromkeys(self._requires_grad, False))

        with UndoOnError(undo):
            away.apply()
            self.trainer.weights_are_back()
            self._away = None
            self._allow_training(self._requires_grad)

    @torch.no_grad()
    def discard(self) -> None:
        """Put w0 back, also where the change can no longer be told: NaN, tensors that were replaced or cast."""
        if self.is_on:
            try:
                self.off()
            except RSTError:
                live = live_tensors(self.trainer.model)
                for name, origin in self._base().items():
                    if name in live and same_form(live[name], origin) and not bit_equal(live[name], origin):
                        live[name].copy_(origin)

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> "TrainingAdapter":
        """Stay as it is: w0 and the optimiser's state are in these dtypes. Raises `ConfigError` for others."""
        self.trainer.weights_are_back()
        for name, origin in self._base().items():
            if dtypes[name] != origin.dtype:
                raise ConfigError(
                    f"is being trained as {origin.dtype}, so it cannot be cast to {dtypes[name]}", parameter=name
                )
        return self

    def follow(self) -> None:
        """Find the base's tensors again that were moved while the change is off."""
        if self._away:
            self._away.follow()

    def _base(self) -> Mapping[str, Tensor]:
        """w0 of every tensor that training moves."""
        return {**self.trainer.base, **self._originals}

    def _step_aside(self) -> PreparedDelta:
        """The change so far, bit for bit and without another selection, as a delta that is on."""
        places = places_of(self.trainer.model)
        groups = []
        for name, origin in self._base().items():
            there = places[name].tensor
            if there is not None and self._is_left_alone(name, origin, there):
                continue
            live = LiveTensor.find(name, places[name])
            base = origin.to(live.tensor.device)
            positions, old, new = changed_weights(name, base, live.tensor)
            if _DENSE * positions.numel() > base.numel():
                patch = Patch.at(live, EVERYTHING, elements(live.tensor.clone()), elements(base))
            else:
                patch = Patch.at(live, elements(positions), elements(new), elements(old))
            groups.append(PatchGroup([patch], patch.new, patch.old))
        return PreparedDelta(groups, applied=True)

    def _is_left_alone(self, name: str, origin: Tensor, live: Tensor) -> bool:
        """Whether a tensor is as it was, and need not be one that could be changed."""
        if name not in self.trainer.tracked.buffers and is_judged(live):
            return False
        return bit_equal(origin if origin.is_meta or live.is_meta else origin.to(live.device), live)

    def _trained(self) -> Mapping[str, Tensor]:
        live = live_tensors(self.trainer.model)
        return {name: live[name] for name in (*self.trainer.tracked.sparse, *self.trainer.tracked.saved)}

    def _allow_training(self, requires_grad: Mapping[str, bool]) -> None:
        self.trainer.suspended = not self.is_on
        for name, tensor in self._trained().items():
            tensor.requires_grad_(requires_grad[name])
