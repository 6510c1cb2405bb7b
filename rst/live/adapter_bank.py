"""The loaded adapters of a base model. At most one is in the base's weights, and never a part of one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from rst.checkpoints.delta_in_module import in_module
from rst.checkpoints.transformers_files import coordinates_of
from rst.config import RSTConfig
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ConfigError
from rst.live.adapters import Adapter, StoredAdapter, TrainingAdapter
from rst.live.undo import UndoOnError
from rst.naming import unwrap
from rst.quantized.beside import SparseBeside
from rst.training.support import Support
from rst.training.tracking import live_tensors

BASE = "__base__"
"""PEFT's name for no adapter, in the adapter names of a mixed batch."""


class AdapterBank(Mapping[str, Adapter]):
    """The adapters of one base model.

    Attributes:
        active: the adapter that is on, or that `enable` applies again; None if there is none.
        enabled: whether the active adapter is in the weights.
        inference: whether all parameters are frozen, except those that an adapter trains.
    """

    def __init__(self, module: nn.Module) -> None:
        """Start without adapters, on a `module` that holds the base's weights."""
        self.active: str | None = None
        self.enabled = True
        self.inference = False
        self._found: dict[str, bool] | None = None  # the user's requires_grad, from the first freeze on
        self._module = module
        self._adapters: dict[str, Adapter] = {}

    def __getitem__(self, name: str) -> Adapter:
        """Return one adapter. Raises `ConfigError` for an unknown name."""
        if name not in self._adapters:
            raise ConfigError(f"no adapter {name!r}; the loaded adapters are {list(self._adapters)}")
        return self._adapters[name]

    def __contains__(self, name: object) -> bool:
        """Return whether an adapter of this name is loaded."""
        return name in self._adapters

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of loading."""
        return iter(self._adapters)

    def __len__(self) -> int:
        """Return the number of adapters."""
        return len(self._adapters)

    def check(self, names: Iterable[str]) -> None:
        """Raise `ConfigError` for a name that is neither an adapter's nor the base's."""
        for name in {*names} - {BASE}:
            self[name]

    def delta(self, name: str) -> SparseDelta:
        """Return the delta of one adapter. An adapter in training that is off is switched on for the duration."""
        adapter = self[name]
        if adapter.is_on or not isinstance(adapter, TrainingAdapter):
            return adapter.delta
        if adapter.delta_while_off is None:
            with self._weights_of(adapter):
                exported = adapter.delta
            adapter.delta_while_off = exported
        return adapter.delta_while_off

    def beside_quantized(self, name: str) -> Sequence[SparseBeside]:
        """Return what an adapter adds beside quantised layers, which is nothing for an adapter in training."""
        adapter = self[name]
        if not isinstance(adapter, StoredAdapter):
            return ()
        with self.disabled():
            return adapter.prepare().besides

    def add(self, name: str, delta: SparseDelta) -> None:
        """Check a delta against the base and add it. The first one becomes active."""
        self._check_new(name)
        stored = StoredAdapter(self._module, delta)
        with self._all_or_nothing():
            self._put_on(None)
            stored.prepare()
            self._adapters[name] = stored
            if self.active is None:
                self.active = name
            self._put_on(self._chosen())

    def train(
        self, name: str, config: RSTConfig, *, start: SparseDelta | None = None, support: Support | None = None
    ) -> None:
        """Start training an adapter, from a delta if one is given. The adapter becomes active.

        By default, the support consists of the weights that the delta changes.
        """
        self._check_new(name)
        found = self._note_requires_grad()
        with self._all_or_nothing():
            self._put_on(None)
            self._set_requires_grad(found)  # another adapter may have frozen these
            if config.select == "support" and support is None and start is not None:
                support = Support.from_delta(_in_module(start, self._module))
            training = TrainingAdapter(self._module, config, support)
            self._adapters[name] = training
            if start is not None:
                training.continue_from(start)
            self.active, self.enabled = name, True

    def replace(self, name: str, delta: SparseDelta) -> None:
        """Replace the delta of a loaded adapter, also in the weights if the old delta is in them."""
        old, new = self[name], StoredAdapter(self._module, delta)
        with self._all_or_nothing():
            self._put_on(None)
            new.prepare()
            self._adapters[name] = new
            self._put_on(self._chosen())
            self._end(old)

    def delete(self, name: str) -> None:
        """Drop an adapter. If it is active, the first of the others becomes active, as in PEFT."""
        adapter = self[name]
        with self._all_or_nothing():
            adapter.discard()
            del self._adapters[name]
            if name == self.active:
                self.active = next(iter(self._adapters), None)
            self._put_on(self._chosen())
            self._end(adapter)

    def clear(self) -> None:
        """Drop all adapters and leave the weights unchanged."""
        while self._adapters:
            self._end(self._adapters.popitem()[1])
        self.active, self.enabled, self.inference = None, True, False
        self._give_back_requires_grad()

    def discard(self) -> None:
        """Drop all adapters and restore the base's bytes."""
        with self._all_or_nothing():
            for adapter in self._adapters.values():
                adapter.discard()
            self.enabled = False
        self.clear()

    def activate(self, name: str) -> None:
        """Replace the active adapter by another. If that fails, the previous one stays."""
        chosen = self[name]
        with self._all_or_nothing():
            self._put_on(chosen)
            self.active, self.enabled = name, True

    def disable(self) -> None:
        """Restore the base's weights."""
        with self._all_or_nothing():
            self._put_on(None)
            self.enabled = False

    def enable(self) -> None:
        """Apply the active adapter again."""
        with self._all_or_nothing():
            self.enabled = True
            self._put_on(self._chosen())

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Restore the base's weights inside a `with`; then apply the chosen adapter, unless adapters were disabled."""
        if not self.enabled:
            yield
            return
        with UndoOnError(self.enable):
            self.disable()
            yield
            self.enable()

    def freeze(self) -> None:
        """Freeze the base except for what an adapter trains; `clear` undoes this."""
        self._note_requires_grad()
        self.inference = True
        self._give_back_requires_grad()

    def move(self, dtypes: Mapping[str, torch.dtype], move: Callable[[], object]) -> None:
        """Call `move`, which moves the base to other devices or `dtypes`, and update the adapters."""
        with self.disabled():
            before, old_dtypes = self._adapters, self._dtypes()
            self._adapters = {name: adapter.cast(dtypes) for name, adapter in before.items()}
            try:
                move()
            except BaseException:
                if self._dtypes() == old_dtypes:  # if not, repeating the call finishes the cast
                    self._adapters = before
                raise
            for training in self._in_training():
                training.follow()

    def _dtypes(self) -> list[torch.dtype]:
        return [weight.dtype for weight in self._module.parameters()]

    def _chosen(self) -> Adapter | None:
        """Return the adapter whose change belongs in the weights."""
        return self._adapters[self.active] if self.active is not None and self.enabled else None

    def _put_on(self, wanted: Adapter | None) -> None:
        """Write the change of one adapter, or of none, into the base's weights."""
        for adapter in self._adapters.values():
            if adapter.is_on and adapter is not wanted:
                adapter.off()
        if wanted is not None and not wanted.is_on:
            wanted.on()

    def _all_or_nothing(self) -> UndoOnError:
        """Restore the adapters, the choice, the weights and what is trained if the block fails."""
        adapters, active, enabled = dict(self._adapters), self.active, self.enabled
        on = next((adapter for adapter in adapters.values() if adapter.is_on), None)
        requires_grad = {} if self._found is None else self._requires_grad()  # nothing was frozen here

        def undo() -> None:
            self._put_on(on)
            self._adapters, self.active, self.enabled = adapters, active, enabled
            self._set_requires_grad(requires_grad)

        return UndoOnError(undo)

    @contextmanager
    def _weights_of(self, adapter: Adapter) -> Iterator[None]:
        """Apply another adapter's change inside a `with`."""
        with self._all_or_nothing():
            self._put_on(adapter)
            yield
            self._put_on(self._chosen())

    def _requires_grad(self) -> dict[str, bool]:
        return {name: weight.requires_grad for name, weight in self._module.named_parameters()}

    def _note_requires_grad(self) -> dict[str, bool]:
        """Return the user's `requires_grad`, as it was before anything was frozen here."""
        if self._found is None:
            self._found = self._requires_grad()
        return self._found

    def _set_requires_grad(self, flags: Mapping[str, bool]) -> None:
        for name, weight in self._module.named_parameters():
            if name in flags:
                weight.requires_grad_(flags[name])

    def _give_back_requires_grad(self) -> None:
        """Restore the user's `requires_grad`, or freeze a model for inference, once nothing is in training."""
        if self._found is not None:
            self._set_requires_grad(dict.fromkeys(self._found, False) if self.inference else self._found)
            self._found = self._found if self.inference else None

    def _end(self, adapter: Adapter) -> None:
        """Detach an adapter's optimiser, and after the last one unfreeze the parameters it froze."""
        if isinstance(adapter, TrainingAdapter):
            if not self._in_training():
                self._give_back_requires_grad()
            adapter.trainer.detach()
            adapter.trainer.suspended = True

    def _in_training(self) -> list[TrainingAdapter]:
        return [adapter for adapter in self.values() if isinstance(adapter, TrainingAdapter)]

    def _check_new(self, name: str) -> None:
        if name in self:
            raise ConfigError(
                f"adapter {name!r} is already loaded; hotswap_adapter replaces it, delete_adapter deletes it"
            )
        if not name:
            raise ConfigError("an adapter needs a name")
        if name == BASE:
            raise ConfigError(f"{BASE!r} means the base model; choose another name")


def _in_module(delta: SparseDelta, module: nn.Module) -> SparseDelta:
    inner = unwrap(module)
    return in_module(delta, coordinates_of(inner), live_tensors(inner))
