"""The adapters of an `RSTModel`: one that is stored, one that is in training. Both go on and off the base in place."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from rst.config import RSTConfig
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ConfigError
from rst.live.apply import PreparedDelta
from rst.naming import unwrap
from rst.operations.cast import cast
from rst.training.tracking import live_tensors
from rst.training.trainer import ResidualSparseTrainer


class Adapter(Protocol):
    """What `RSTModel` asks of its adapters."""

    @property
    def delta(self) -> SparseDelta:
        """The change as it is now."""
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

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> None:
        """Follow the base, still in its old dtypes, to new ones. Off before."""
        ...

    def moved(self) -> None:
        """The base's tensors are in other places now. Off before."""
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

    def prepare(self) -> None:
        """Check the delta against the base, which must be without adapters. Raises as `rst.live.apply.prepare`."""
        self._prepared = self._prepared or self._delta.prepare(self._module)

    def on(self) -> None:
        """Exchange the changed weights. Raises as `rst.live.apply.prepare`; the base is unchanged then."""
        self.prepare()
        assert self._prepared is not None
        self._prepared.apply()

    def off(self) -> None:
        """Put the overwritten weights back, bit for bit."""
        assert self._prepared is not None
        self._prepared.remove()

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> None:
        """Cast the tuned weights."""
        self._delta = cast(self._delta, self._module, dtypes)

    def moved(self) -> None:
        """Prepare anew when next used."""
        self._prepared = None


class TrainingAdapter:
    """A change in the making: a `ResidualSparseTrainer`, whose weights can step aside and come back."""

    def __init__(self, module: nn.Module, config: RSTConfig) -> None:
        """Start training at the base's weights, with the change on (there is none yet)."""
        live = live_tensors(unwrap(module))
        self._requires_grad = {name: tensor.requires_grad for name, tensor in live.items()}
        self.trainer = ResidualSparseTrainer(module, config)
        # The trainer keeps w0 of what it selects from; these are the others that training moves.
        moving = (*self.trainer.tracked.saved, *self.trainer.tracked.buffers)
        self._originals = {name: live[name].detach().clone() for name in moving}
        trained = (*self.trainer.tracked.sparse, *self.trainer.tracked.saved)
        self._trained = [name for name in trained if live[name].requires_grad]
        self._away: StoredAdapter | None = None

    @property
    def delta(self) -> SparseDelta:
        """The change so far; while it is on, extracting it selects once more."""
        return self._away.delta if self._away else self.trainer.export()

    @property
    def dsp(self) -> int:
        """The weights that have moved so far, and those saved whole."""
        if self._away:
            return self._away.dsp
        live = live_tensors(self.trainer.model)
        saved = [live[name] for name in self.trainer.tracked.saved]
        return self.trainer.count_changed() + sum(
            weight.numel() for weight in saved if isinstance(weight, nn.Parameter)
        )

    @property
    def is_on(self) -> bool:
        """Whether it is in the base's weights, and trains."""
        return self._away is None

    def continue_from(self, delta: SparseDelta) -> None:
        """Go on from a delta that was saved: put it into the weights for good, with the trainer's w0 below it."""
        delta.apply(self.trainer.model)

    @torch.no_grad()
    def off(self) -> None:
        """Extract the change, put the base back, and let no gradient and no optimiser touch it meanwhile."""
        delta = self.trainer.export()
        live = live_tensors(self.trainer.model)
        try:
            self._put_base_back(live)
            self._away = StoredAdapter(self.trainer.model, delta)
            self._set_training(live, False)
        except BaseException:  # as it was: the base everywhere, and the change on it
            self._put_base_back(live)
            delta.apply(self.trainer.model)
            self._away = None
            self._set_training(live, True)
            raise

    def on(self) -> None:
        """Put the change back and go on training."""
        assert self._away is not None
        away, live = self._away, live_tensors(self.trainer.model)
        try:
            away.on()
            self._away = None
            self._set_training(live, True)
        except BaseException:
            if away.is_on:
                away.off()
            self._away = away
            self._set_training(live, False)
            raise

    def cast(self, dtypes: Mapping[str, torch.dtype]) -> None:
        """Stay as it is: w0 and the optimiser's state are in these dtypes. Raises `ConfigError` for others."""
        for name, origin in {**self.trainer.base, **self._originals}.items():
            if dtypes[name] != origin.dtype:
                raise ConfigError(f"in training as {origin.dtype}, so it cannot become {dtypes[name]}", parameter=name)

    def moved(self) -> None:
        """Prepare anew."""
        if self._away:
            self._away.moved()

    def thaw(self) -> None:
        """Let the parameters require gradients as they did before."""
        for name, tensor in live_tensors(self.trainer.model).items():
            tensor.requires_grad_(self._requires_grad[name])

    def _put_base_back(self, live: Mapping[str, Tensor]) -> None:
        for name, origin in {**self.trainer.base, **self._originals}.items():
            live[name].copy_(origin)

    def _set_training(self, live: Mapping[str, Tensor], trains: bool) -> None:
        self.trainer.suspended = not trains
        for name in self.trainer.tracked.frozen:
            live[name].requires_grad_(False)
        for name in self._trained:
            live[name].requires_grad_(trains)
