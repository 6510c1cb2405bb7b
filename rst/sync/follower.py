"""The receiving side: a model that is updated, in place and bit for bit, to the last published step."""

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rst.checkpoints.transformers_files import coordinates_of
from rst.delta.parameter_delta import gather
from rst.delta.sparse_delta import SparseDelta
from rst.files.safetensors_writer import specs_of
from rst.interop.vllm import EnginePatches
from rst.live.apply import PreparedDelta
from rst.sync.anchor import last_anchor, read_anchor
from rst.sync.chain import Link, Pointer, link_of, read_delta, read_pointer
from rst.sync.engine_patches import Exchange, patches_between, patches_of
from rst.sync.errors import ChainError, ChainGapError, ChainOrderError, ChainStateError
from rst.sync.live import Model, as_module, check_same_specs, coordinates_of_weights, live_weights
from rst.sync.state import STATE_VERSION, changed_state, fingerprint_state, hash_changes
from rst.sync.store import Store, open_store
from rst.sync.words import touched_words, weights_a_word

OnPatches = Callable[[EnginePatches], object] | None


@dataclass(frozen=True)
class Update:
    """The result of `Follower.update`.

    Attributes:
        step: the step of the model now: the last published one.
        from_step: its step before; None if unknown.
        changed: number of weights written, by tensor name; a weight that several steps change counts once for each.
        anchor: the last anchor that was loaded; None if only deltas were.
        delta_bytes: total bytes of the deltas read.
        seconds: duration of the update.
    """

    step: int
    from_step: int | None
    changed: Mapping[str, int]
    anchor: int | None
    delta_bytes: int
    seconds: float


class _Change(NamedTuple):
    """A tensor before a step, the elements that the step changes, and their new values, both of shape (nnz,)."""

    before: Tensor
    old: Tensor
    new: Tensor


class Follower:
    """Follow a chain with a live model.

    >>> follower = Follower(model, "/shared/chain")
    >>> follower.update().step
    17

    A step is checked in full before its first weight is written: the file's digest, its place in the chain, and that
    the weights before and after have the states that the chain records. After any exception, the model is at `step`,
    bit for bit. A step takes O(changed weights) besides reading the file; an anchor holds the model twice more in
    memory while it is applied.
    """

    def __init__(self, model: Model, store: str | os.PathLike[str] | Store) -> None:
        """Use the model as it is; `update` determines where in the chain it stands.

        Args:
            model: a module, on any device and in any memory format, or a state dict whose tensors are changed in place.
                All parameters and persistent buffers belong to the chain; tied ones count once.
            store: a folder, a URL for fsspec, or a `Store`.
        """
        self.store = open_store(store)
        self._module = as_module(model)
        self._version = STATE_VERSION
        self._state = fingerprint_state(self.weights, self._version)
        self._chain: str | None = None
        self._step: int | None = None

    @classmethod
    def from_anchor(cls, store: str | os.PathLike[str] | Store, step: int) -> "Follower":
        """Create a follower with its own weights, in CPU memory, at the step of an anchor. Raises as `read_anchor`."""
        store = open_store(store)
        return cls._at(store, *read_anchor(store, step))

    @classmethod
    def from_last_anchor(
        cls, store: str | os.PathLike[str] | Store, pointer: Pointer, above: int = -1, until: int | None = None
    ) -> "Follower":
        """Do what `from_anchor` does, at the last intact anchor above a step and up to `until`.

        Raises:
            ChainError: there is none.
        """
        store = open_store(store)
        found = last_anchor(store, pointer, above, until)
        if found is None:
            last = pointer.step if until is None else until
            raise ChainGapError(f"no anchor between steps {above + 1} and {last}", file=store.location)
        return cls._at(store, *found)

    @classmethod
    def _at(cls, store: Store, weights: dict[str, Tensor], link: Link) -> "Follower":
        follower = cls.__new__(cls)  # not __init__, which would recompute the state that reading the anchor has checked
        follower.store, follower._module = store, as_module({name: weight.clone() for name, weight in weights.items()})
        follower._chain, follower._step = link.chain, link.to_step
        follower._version, follower._state = link.version, link.state_after
        return follower

    @property
    def weights(self) -> dict[str, Tensor]:
        """The followed weights by canonical name, tied ones once."""
        return live_weights(self._module)[0]

    @property
    def step(self) -> int | None:
        """The step of the model in the chain; None if unknown."""
        return self._step

    @property
    def state(self) -> str:
        """`fingerprint_state` of the model, as this follower left it."""
        return self._state

    def update(self, on_patches: OnPatches = None) -> Update:
        """Apply all steps published since, one by one, each all or nothing.

        If a step is missing, damaged or contradicts the chain, or the model is at no known step, the update continues
        from the last intact anchor. Damage is reported with a warning.

        Args:
            on_patches: given each step, or what an anchor changes, as patches for an inference engine, before the model
                itself is written. Where it raises, the model stays at the step before, and the next call hands the
                same patches on again: their values are absolute, and twice does no harm.

        Raises:
            NotCarriedError: `on_patches` is given and a step has no patches: it changes integers or a tensor of 2^31
                elements and more.
            ChainGapError: there is no chain, or a file is missing and no later anchor is there.
            ChainDamageError: a file is damaged and no later anchor is there.
            ChainOrderError: a file is of another step or chain and no later anchor is there, or the chain went back.
            ChainStateError: the model has been changed by somebody else, or the chain contradicts itself and no later
                anchor is there.
            ParameterMismatchError: the model's names, shapes or dtypes are not those of the chain.
        """
        began, pointer = time.perf_counter(), read_pointer(self.store)
        if pointer.chain != self._chain:
            self._take_version(pointer.version)
            self._chain, self._step = pointer.chain, pointer.step_of(self._state)
        elif self._step is not None and pointer.step < self._step:
            raise ChainOrderError(
                f"ends at step {pointer.step}, but the model is at {self._step}", file=self.store.location
            )
        before, anchor, read, changed = self._step, None, 0, Counter[str]()
        if before is None:
            step = anchor = self._load_anchor(pointer, changed, on_patches)
        else:
            step = before
        while step != pointer.step:
            try:
                delta, link, size = read_delta(self.store, step + 1)
                self._check_place(link, pointer, step)
                step = self._apply(delta, link, on_patches)
                read += size
                changed.update({name: change.nnz for name, change in delta.items()})
            except ChainError as error:
                if isinstance(error, ChainStateError) and not self._is_untouched():
                    raise  # not the chain's fault
                step = anchor = self._go_round(error, pointer, changed, on_patches)
        if self._state != pointer.state:
            raise ChainStateError(
                f"{self._where()} is {self._state}, but the chain's is {pointer.state}", file=self.store.location
            )
        return Update(step, before, changed, anchor, read, time.perf_counter() - began)

    def apply(self, delta: SparseDelta) -> int:
        """Apply one delta of the chain, which must be the next step, all or nothing; return the step reached.

        Raises:
            ChainOrderError: it belongs to another chain, or does not apply to the model's step.
            ChainStateError: it applies to another state, or leads to another than it names. Nothing is written.
            ParameterMismatchError: the model lacks a tensor, or has it in another shape or dtype.
        """
        link = link_of(delta)
        if (link.chain, link.from_step) != (self._chain, self._step):
            raise ChainOrderError(
                f"the delta leads from step {link.from_step} to {link.to_step} of chain {link.chain}, "
                f"{self._where()} of chain {self._chain}",
                file=self.store.location,
            )
        return self._apply(delta, link)

    def verify(self) -> None:
        """Read every weight, and check that the model has the state that the follower left, in O(weights).

        Raises:
            ChainStateError: something else has changed the model.
        """
        found = fingerprint_state(self.weights, self._version)
        if found != self._state:
            raise ChainStateError(
                f"{self._where()} is {found}, but it was left as {self._state}", file=self.store.location
            )

    def _check_place(self, link: Link, pointer: Pointer, step: int) -> None:
        """Raise `ChainError` unless a file's link follows a step as recorded in the pointer."""
        if (link.chain, link.from_step, link.to_step) != (pointer.chain, step, step + 1):
            raise ChainOrderError(
                f"where step {step + 1} should be there is step {link.to_step}, after {link.from_step}, "
                f"of chain {link.chain}",
                file=self.store.location,
            )
        if pointer.expected(link.to_step) not in (None, link.state_after):
            raise ChainStateError(
                f"step {link.to_step} says it makes {link.state_after}, but the chain says otherwise",
                file=self.store.location,
            )

    def _apply(self, delta: SparseDelta, link: Link, on_patches: OnPatches = None) -> int:
        if link.state_before != self._state:
            raise ChainStateError(
                f"step {link.to_step} applies to {link.state_before}, but {self._where()} is {self._state}",
                file=self.store.location,
            )
        prepared = delta.prepare(self._module)
        changes, words = self._changes(delta, prepared), {}
        for name, change in delta.items():
            each = weights_a_word(change.dtype, self._version)
            words[name] = touched_words(changes[name].before, change.indices, changes[name].new, each)
        specs = {name: (change.dtype, change.shape) for name, change in delta.items()}
        state = changed_state(self._state, hash_changes(specs, words))
        if state != link.state_after:
            raise ChainStateError(
                f"step {link.to_step} should make {link.state_after} but would make {state}: the model was changed "
                f"where the step changes it; create a new Follower to start from an anchor",
                file=self.store.location,
            )
        if on_patches is not None:
            exchanges = {name: Exchange(delta[name].indices, old, new) for name, (_, old, new) in changes.items()}
            on_patches(patches_of(exchanges, self.weights))
        prepared.apply()
        self._state, self._step = state, link.to_step
        return link.to_step

    def _changes(self, delta: SparseDelta, prepared: PreparedDelta) -> dict[str, "_Change"]:
        """Return the old and new values at the positions that the step changes, by the files' tensors.

        The old values are read from the model, not from the file, so that a foreign change shows.
        """
        coordinates, found = coordinates_of(self._module), {}
        for patch in prepared.patches:
            device = patch.live.tensor.device
            old, new = (torch.as_tensor(part, device=device) for part in (patch.old, patch.new))
            found[coordinates.name_in_files(patch.live.name)] = _Change(patch.live.tensor, old, new)
        weights = self.weights if delta.keys() - found.keys() else {}
        for name, change in delta.items():
            if name not in found:  # the model has its elements elsewhere
                flat = weights[name].reshape(-1)
                origin = gather(flat, change.indices.to(flat.device, torch.int64))
                found[name] = _Change(flat, origin, change.to(flat.device).tuned_values(origin))
        return {name: found[name] for name in delta}

    def _is_untouched(self) -> bool:
        """Return whether the model is as this follower left it, in O(weights)."""
        return fingerprint_state(self.weights, self._version) == self._state

    def _take_version(self, version: int) -> None:
        """Express the state in the chain's version."""
        if version != self._version:
            self.verify()
            self._version, self._state = version, fingerprint_state(self.weights, version)

    def _go_round(self, error: ChainError, pointer: Pointer, changed: Counter[str], on_patches: OnPatches) -> int:
        """Load an anchor beyond a step that cannot be applied. Raises `error` if there is none."""
        try:
            reached = self._load_anchor(pointer, changed, on_patches)
        except ChainError:
            raise error from None
        if not isinstance(error, ChainGapError):  # pruned steps are not damage
            warnings.warn(f"{error}; continued from the anchor of step {reached}", stacklevel=3)
        return reached

    def _load_anchor(self, pointer: Pointer, changed: Counter[str], on_patches: OnPatches) -> int:
        """Load the last intact anchor beyond the model's step, and return its step."""
        above = -1 if self._step is None else self._step
        found = last_anchor(self.store, pointer, above)
        if found is None:
            raise ChainGapError(
                f"no anchor between steps {above + 1} and {pointer.step}; a follower must start "
                "from a model at one of the chain's steps",
                file=self.store.location,
            )
        weights, link = found
        own, tied = live_weights(self._module)
        check_same_specs(specs_of(own), specs_of(weights), "the model")
        if on_patches is not None:
            on_patches(patches_between(own, weights))
        whole = SparseDelta({}, dense=weights, tied=tied, coordinates=coordinates_of_weights(self._module))
        whole.apply(self._module)
        changed.update({name: weight.numel() for name, weight in weights.items()})
        self._state, self._step = link.state_after, link.to_step
        return link.to_step

    def _where(self) -> str:
        return (
            "the model, at no step that the chain knows," if self._step is None else f"the model at step {self._step}"
        )
