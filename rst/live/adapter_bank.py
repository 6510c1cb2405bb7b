"""Which adapters there are and which one is in the base's weights: at most one, and never half of one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from rst.config import RSTConfig
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ConfigError
from rst.live.adapters import Adapter, StoredAdapter, TrainingAdapter

BASE = "__base__"
"""PEFT's name for no adapter, in the adapter names of a mixed batch."""


class AdapterBank(Mapping[str, Adapter]):
    """The adapters of one base model.

    Attributes:
        active: the adapter that is on, or comes back on when adapters are enabled; None for none.
        enabled: whether the active adapter is in the weights.
    """

    def __init__(self, module: nn.Module) -> None:
        """Start without adapters; `module` holds the base's weights."""
        self.active: str | None = None
        self.enabled = True
        self._module = module
        self._adapters: dict[str, Adapter] = {}

    def __getitem__(self, name: str) -> Adapter:
        """One adapter. Raises `ConfigError` for an unknown name."""
        if name not in self._adapters:
            raise ConfigError(f"no adapter {name!r}; loaded are {list(self._adapters)}")
        return self._adapters[name]

    def __contains__(self, name: object) -> bool:
        """Whether an adapter of this name is loaded."""
        return name in self._adapters

    def __iter__(self) -> Iterator[str]:
        """Names, in the order they came."""
        return iter(self._adapters)

    def __len__(self) -> int:
        """Number of adapters."""
        return len(self._adapters)

    def add(self, name: str, delta: SparseDelta) -> None:
        """Add a delta, checked against the base; the first one becomes active."""
        self._check_new(name)
        stored = self._checked(delta)
        try:
            self._adapters[name] = stored
            if self.active is None:
                if self.enabled:
                    stored.on()
                self.active = name
        except BaseException:
            if stored.is_on:
                stored.off()
            self._adapters.pop(name, None)
            if self.active == name:
                self.active = None
            raise

    def train(self, name: str, config: RSTConfig, start: SparseDelta | None = None) -> None:
        """Start training an adapter, from a delta if there is one; it becomes active."""
        self._check_new(name)
        with self._making_way(), self._thawed():
            training = TrainingAdapter(self._module, config)
            if start is not None:
                training.continue_from(start)
        self._adapters[name] = training
        self.active, self.enabled = name, True

    def replace(self, name: str, delta: SparseDelta) -> None:
        """Put another delta under a loaded name, and into the weights if the old one is there."""
        old, new, was_enabled = self[name], self._checked(delta), self.enabled
        try:
            with self.disabled():
                self._adapters[name] = new
            self._end(old)
        except BaseException:
            if new.is_on:
                new.off()
            self._adapters[name] = old
            if was_enabled:
                self.enable()
            raise

    def delete(self, name: str) -> None:
        """Forget an adapter; if it is active, the base's weights are back and none is active."""
        adapter = self[name]
        if name == self.active:
            if self.enabled:
                adapter.off()
            self.active = None
        del self._adapters[name]
        self._end(adapter)

    def clear(self) -> None:
        """Forget every adapter and leave the weights as they are."""
        while self._adapters:
            self._end(self._adapters.popitem()[1])
        self.active, self.enabled = None, True

    def activate(self, name: str) -> None:
        """Exchange the active adapter for another. If that is refused, the one before stays."""
        chosen, before = self[name], self.active
        if name == self.active and self.enabled:
            return
        with self._making_way():
            try:
                chosen.on()
                self.active, self.enabled = name, True
            except BaseException:
                if chosen.is_on:
                    chosen.off()
                self.active, self.enabled = before, False
                raise

    def disable(self) -> None:
        """Put the base's weights back."""
        self._turn(False)

    def enable(self) -> None:
        """Put the active adapter back on."""
        self._turn(True)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Have the base's weights inside a `with`."""
        was_enabled = self.enabled
        try:
            self.disable()
            yield
            if was_enabled:
                self.enable()
        except BaseException:  # of the block, or Ctrl-C on the way back
            if was_enabled:
                self.enable()
            raise

    def move(self, dtypes: Mapping[str, torch.dtype], move: Callable[[], object]) -> None:
        """Call `move`, which takes the base to other devices or `dtypes`, and let the adapters follow."""
        with self.disabled():
            for adapter in sorted(self.values(), key=lambda adapter: isinstance(adapter, StoredAdapter)):
                adapter.cast(dtypes)  # those in training first, which refuse
            move()
            for adapter in self.values():
                adapter.moved()

    def _turn(self, on: bool) -> None:
        """Change the weights and `enabled`, or raise with neither changed."""
        adapter, before = None if self.active is None else self[self.active], self.enabled
        try:
            if adapter is not None and adapter.is_on != on:
                adapter.on() if on else adapter.off()
            self.enabled = on
        except BaseException:
            if adapter is not None and adapter.is_on != before:
                adapter.on() if before else adapter.off()
            self.enabled = before
            raise

    @contextmanager
    def _making_way(self) -> Iterator[None]:
        """Have the base's weights for what comes next; only if that fails is the active adapter put back."""
        was_enabled = self.enabled
        try:
            self.disable()
            yield
        except BaseException:
            if was_enabled:
                self.enable()
            raise

    @contextmanager
    def _thawed(self) -> Iterator[None]:
        """Undo what those in training have frozen, for another to find what trains; if that fails, freeze it again."""
        frozen = {parameter: parameter.requires_grad for parameter in self._module.parameters()}
        for adapter in self._in_training():
            adapter.thaw()
        try:
            yield
        except BaseException:
            for parameter, requires_grad in frozen.items():
                parameter.requires_grad_(requires_grad)
            raise

    def _end(self, adapter: Adapter) -> None:
        """Let go of the optimiser of one that was in training, and after the last of the parameters it froze."""
        if isinstance(adapter, TrainingAdapter):
            adapter.trainer.detach()
            if not self._in_training():
                adapter.thaw()

    def _in_training(self) -> list[TrainingAdapter]:
        return [adapter for adapter in self.values() if isinstance(adapter, TrainingAdapter)]

    def _checked(self, delta: SparseDelta) -> StoredAdapter:
        stored = StoredAdapter(self._module, delta)
        with self.disabled():
            stored.prepare()
        return stored

    def _check_new(self, name: str) -> None:
        if name in self:
            raise ConfigError(
                f"adapter {name!r} is loaded already; hotswap_adapter replaces it, delete_adapter drops it"
            )
        if not name:
            raise ConfigError("an adapter needs a name")
        if name == BASE:
            raise ConfigError(f"{BASE!r} means the base model; choose another name")
