"""The two kinds of adapters of an `RSTModel`: stored, and in training. Both are switched on and off in place."""

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

_DENSE = 3  # a change at a position takes the memory of three weights or more


class Adapter(Protocol):
    """The interface of adapters in `RSTModel`."""

    @property
    def delta(self) -> SparseDelta:
        """Return the current change. An adapter in training must be on."""
        ...

    @property
    def dsp(self) -> int:
        """Return the current number of parameters to store, without changing the weights."""
        ...

    @property
    def is_on(self) -> bool:
        """Return whether the change is in the base's weights."""
        ...

    def on(self) -> None:
        """Write the change into the base's weights, or raise an error and change nothing. The adapter must be off."""
        ...

    def off(self) -> None:
        """Restore the base's bytes, or raise an error and change nothing. The adapter must be on."""
        ...

    def discard(self) -> None:
        """Restore the base's bytes for the last time, whether the adapter is on or off."""
        ...

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> "Adapter":
        """Return the adapter for new dtypes of the base, which still has its old ones. The adapter must be off."""
        ...


class StoredAdapter:
    """A delta that is prepared for the module when it is first used."""

    def __init__(self, module: nn.Module, delta: SparseDelta) -> None:
        """Store `delta` for `module`, which is the base."""
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
        """Check the delta against the base without adapters. Raises the errors of `rst.live.apply.prepare`."""
        if self._prepared is None:
            self._prepared = prepare(self._module, self._delta)
        return self._prepared

    def on(self) -> None:
        """Write the changed weights. Raises the errors of `rst.live.apply.prepare`, and then changes nothing."""
        self.prepare().apply()

    def off(self) -> None:
        """Restore the overwritten weights, bit for bit."""
        self.prepare().remove()

    def discard(self) -> None:
        """Restore the overwritten weights if the adapter is on."""
        if self.is_on:
            self.off()

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> "StoredAdapter":
        """Cast the tuned weights. The prepared delta is dropped, because it would keep the base's old memory alive."""
        return StoredAdapter(self._module, cast(self._delta, self._module, dtypes))


class TrainingAdapter:
    """An adapter in training: a `ResidualSparseTrainer` whose changes can be switched off and on."""

    def __init__(self, module: nn.Module, config: RSTConfig, support: Support | None = None) -> None:
        """Start training at the base's weights, switched on (without a change yet)."""
        live = live_tensors(unwrap(module))
        self.trainer = ResidualSparseTrainer(module, config, support=support)
        # The trainer keeps w0 of the weights that it selects from. These are the other tensors that training changes.
        moving = (*self.trainer.tracked.saved, *self.trainer.tracked.buffers)
        self._originals = {name: live[name].detach().clone() for name in moving}
        self._away: PreparedDelta | None = None
        self._requires_grad: dict[str, bool] = {}  # as they were when the change was switched off
        self.delta_while_off: SparseDelta | None = None
        """The delta that the bank has exported since, cached for later requests."""

    @property
    def delta(self) -> SparseDelta:
        """Return the change so far. The adapter must be on, because extracting the change selects once more."""
        return self.trainer.export()

    @property
    def dsp(self) -> int:
        """Return the number of weights that have changed so far, plus those saved whole."""
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
        """Return whether the change is in the base's weights, where it is trained."""
        return self._away is None

    def continue_from(self, delta: SparseDelta) -> None:
        """Continue from a saved delta: write it into the weights permanently, while the trainer keeps w0."""
        self.trainer.continue_from(delta)

    @torch.no_grad()
    def off(self) -> None:
        """Restore the base, and keep gradients and optimisers away from it while the adapter is off."""
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
        """Apply the change again, with the recorded `requires_grad`, and continue training."""
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
        """Restore w0, even if the change cannot be extracted: NaNs, tensors that were replaced or cast."""
        if self.is_on:
            try:
                self.off()
            except RSTError:
                live = live_tensors(self.trainer.model)
                for name, origin in self._base().items():
                    if name in live and same_form(live[name], origin) and not bit_equal(live[name], origin):
                        live[name].copy_(origin)

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> "TrainingAdapter":
        """Return the adapter itself if w0 and the optimiser's state have these dtypes, else raise `ConfigError`."""
        self.trainer.weights_are_back()
        for name, origin in self._base().items():
            if dtypes[name] != origin.dtype:
                raise ConfigError(
                    f"is being trained as {origin.dtype}, so it cannot be cast to {dtypes[name]}", parameter=name
                )
        return self

    def follow(self) -> None:
        """Find the base's tensors again if they were moved while the change was off."""
        if self._away:
            self._away.follow()

    def _base(self) -> Mapping[str, Tensor]:
        """Return w0 of every tensor that training changes."""
        return {**self.trainer.base, **self._originals}

    def _step_aside(self) -> PreparedDelta:
        """Return the change so far as an applied delta, bit for bit and without another selection."""
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
        """Return whether a tensor is unchanged, in which case it may be of a kind that a delta cannot change."""
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
