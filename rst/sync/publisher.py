"""The sending side: after each optimizer step, publishes what has changed since the last published one."""

import math
import os
import uuid
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Weights
from rst.config import CopyStorage
from rst.delta.file import save
from rst.delta.parameter_delta import (
    Op,
    ParameterDelta,
    changed_weights_of_each,
    check_no_nan,
    check_op,
    check_real,
)
from rst.delta.sparse_delta import BaseIdentity, Encoding, SparseDelta
from rst.errors import ConfigError, ParameterMismatchError, RSTError
from rst.files.safetensors_writer import specs_of
from rst.numerics.exactness import RESIDUAL_DTYPES, bits
from rst.sync.anchor import write_anchor
from rst.sync.chain import HEADER_KEY, Link, Pointer, delta_name, read_pointer, write_pointer
from rst.sync.errors import ChainConflictError, ChainOrderError
from rst.sync.follower import Follower
from rst.sync.live import check_same_specs, coordinates_of_weights
from rst.sync.published_weights import Change, Parts, ShardedWeights, open_weights
from rst.sync.state import STATE_VERSION
from rst.sync.store import Store, open_store
from rst.sync.sweeping import find_chain, sweep
from rst.training.base_weights import BaseWeights


@dataclass(frozen=True)
class Published:
    """A published step.

    Attributes:
        step: its number.
        state: `fingerprint_state` of all weights.
        changed: number of weights that differ from the step before.
        weights: number of weights of the model.
        delta_bytes: size of the delta; 0 if the step has only an anchor.
        anchor_bytes: size of the anchor; 0 where there is none.
    """

    step: int
    state: str
    changed: int
    weights: int
    delta_bytes: int
    anchor_bytes: int


@dataclass(frozen=True)
class _Step:
    """A step whose files are written, and which the pointer is about to publish.

    Attributes:
        pointer: the new pointer.
        published: what `publish` returns.
        kept: positions and values, by tensor, that update the publisher's copy to the step; None if all weights do.
    """

    pointer: Pointer
    published: Published
    kept: Mapping[str, tuple[Tensor, Tensor]] | None


class Publisher:
    """Publish a model's weights as a chain.

    >>> publisher = Publisher(model, "/shared/chain", anchor_every=100)
    >>> for batch in batches:
    ...     train_step(batch)
    ...     publisher.publish()

    The publisher keeps one copy of the weights as last published: beside them, in CPU memory, or in a mapped file that
    the system may drop from memory. Changes are found tensor by tensor on the weights' own device.

    A chain has one publisher at a time: each step is written under the store's lock, if the pointer is still as this
    publisher left it; another one gets `ChainConflictError`. A publisher that was killed, at any point, is replaced by
    a new one on the same store: what was published stays, and the first `publish` leads followers from there to the
    model as it is then.
    """

    def __init__(
        self,
        weights: Weights,
        store: str | os.PathLike[str] | Store,
        *,
        anchor_every: int = 100,
        op: Op = "step",
        encoding: Encoding = "packed",
        base_storage: CopyStorage = "device",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Start a chain with these weights as step 0, or continue the one in the store.

        If the published weights of a chain cannot be read any more, or have other names, shapes or dtypes, it continues
        with an anchor at the next `publish`, with a warning.

        Args:
            weights: a module, a state dict, or anything `rst.open_checkpoint` takes. Its tensors are read at each
                `publish`; all parameters and persistent buffers belong to the chain, tied ones once. A model with
                DTensors (FSDP2, tensor parallel) is published by all its processes together: each compares its part,
                the first writes, and tensors are assembled one at a time for anchors only.
            store: a folder, a URL for fsspec, or a `Store`.
            anchor_every: all weights are stored at each step that is a multiple of this.
            op: "step" (smallest in 16 bits), "replace" (absolute values) or "add" (residuals). All are exact.
            encoding: of the deltas, as `SparseDelta.save` takes it.
            base_storage: storage of the copy: "device", "cpu" or "mmap".
            dtype: publish floating-point tensors of 16 bits and more cast to this dtype. Nearly every float32 master
                weight changes in a step, but only a few per cent of the bfloat16 weights that engines run.

        Raises:
            ConfigError: `anchor_every` is below 1, `op` is unknown, or `dtype` has no residuals.
            ChainDamageError: the chain's pointer is damaged, or missing while its steps exist.
            ChainConflictError: another publisher holds the store's lock.
            ParameterMismatchError: a complex tensor.
            NonFiniteError: a weight is NaN.
        """
        if anchor_every < 1:
            raise ConfigError(f"anchor_every={anchor_every}: must be at least 1")
        check_op(op)
        if dtype is not None and dtype not in RESIDUAL_DTYPES:
            raise ConfigError(f"dtype={dtype}: choose one of {', '.join(map(str, RESIDUAL_DTYPES))}")
        self.store = open_store(store)
        self._anchor_every, self._op, self._encoding = anchor_every, op, encoding
        self._model = open_weights(weights, dtype)
        live = self._model.read()
        self._specs = live.specs()
        self._model.together(lambda: _check(live))
        self._mismatched = self._swept = False
        self._unconfirmed: _Step | None = None
        with ExitStack() as held:
            self._model.first(lambda: held.enter_context(self.store.lock()))
            found = self._model.first(lambda: find_chain(self.store))
            self._pointer = found or self._start(live)
        published = live if found is None else self._last_published(live)
        self._copy = BaseWeights({name: part.reshape(-1) for name, part in published.items()}, base_storage)

    @property
    def step(self) -> int:
        """The last published step."""
        return self._pointer.step

    @property
    def state(self) -> str:
        """`fingerprint_state` of the last published step."""
        return self._pointer.state

    def publish(self, step: int | None = None) -> Published:
        """Publish the weights as they are now; nothing may write to them meanwhile.

        Args:
            step: the expected number, to ensure that trainer and chain agree; None takes the next.

        Raises:
            ChainOrderError: `step` is not the next step.
            ChainConflictError: another publisher has advanced the chain, or holds the store's lock.
            NonFiniteError: a weight is NaN.
            ParameterMismatchError: names, shapes or dtypes changed since the publisher was made.
            OSError: the store cannot be written. In all these cases nothing is published, unless the pointer itself
                arrived and only the answer was lost: the next call finds out, and goes on from that step or returns it.
        """
        live = self._model.read()
        check_same_specs(live.specs(), self._specs, "the weights")
        with ExitStack() as held:
            self._model.first(lambda: held.enter_context(self.store.lock()))
            recognised = self._recognise(live)
            if recognised and step in (None, recognised.step):
                return recognised
            self._check_pointer()
            if step not in (None, following := self._pointer.step + 1):
                raise ChainOrderError(f"step {step}: the next step is {following}", file=self.store.location)
            if not self._swept:
                self._model.first(lambda: sweep(self.store, self._pointer.step))
            self._swept = False  # until the step is complete
            written = self._write_anchor(live) if self._mismatched else self._write_delta(live)
            self._check_pointer()  # again, because a lease can be lost
            self._unconfirmed = written
            self._model.first(lambda: write_pointer(self.store, written.pointer))
            self._keep(written, live)
            self._swept = True
        return written.published

    def _recognise(self, live: Parts) -> Published | None:
        """Return a published step with these weights, if the store's answer to the pointer was lost."""
        lost = self._unconfirmed
        if lost is None or self._model.first(lambda: read_pointer(self.store)) != lost.pointer:
            return None
        unchanged = self._model.state(live, lost.pointer.version) == lost.pointer.state
        self._keep(lost, live if unchanged else {})
        return lost.published if unchanged else None

    def _check_pointer(self) -> None:
        """Raise `ChainConflictError` unless the chain is as this publisher left it."""
        if self._model.first(lambda: read_pointer(self.store)) != self._pointer:
            raise ChainConflictError(
                f"no longer ends at step {self._pointer.step} as this publisher left it; "
                "create a new Publisher to continue from its current step",
                file=self.store.location,
            )

    @torch.no_grad()
    def _find_changes(self, live: Parts) -> dict[str, Change]:
        flat = ((name, part.reshape(-1)) for name, part in live.items())
        pairs = ((name, self._copy.on_device_of({name: part})[name], part) for name, part in flat)
        found = zip(live, map(Change._make, changed_weights_of_each(pairs)), strict=True)
        return {name: change for name, change in found if change.positions.numel()}

    def _write_delta(self, live: Parts) -> _Step:
        mine, last = self._model.together(lambda: self._find_changes(live)), self._pointer
        state = self._model.changed_state(last.state, self._copy, mine, self._specs, last.version)
        changes, step = self._model.collect(live, mine), last.step + 1
        changed, delta_bytes = self._model.first(lambda: self._put_delta(changes, live.tied, state))
        anchor_bytes = self._put_anchor(last.advanced(state), live) if step % self._anchor_every == 0 else 0
        published = Published(step, state, changed, self._count, delta_bytes, anchor_bytes)
        kept = {name: (change.positions, change.new) for name, change in mine.items()}
        return _Step(last.advanced(state), published, kept)

    def _put_delta(self, changes: Mapping[str, Change], tied: Mapping[str, str], state: str) -> tuple[int, int]:
        """Write the delta that leads to a state; return its changed weights and its bytes."""
        last, parameters = self._pointer, {}
        for name, (positions, old, new) in changes.items():
            parameters[name] = ParameterDelta.at(positions, old, new, self._specs[name][1], None, self._op)
        link = Link(last.chain, last.step, last.step + 1, last.state, state, last.version)
        delta = SparseDelta(
            parameters,
            tied={alias: owner for alias, owner in tied.items() if owner in changes},
            base=BaseIdentity(weights=self._count),
            config={HEADER_KEY: link.record()},
            coordinates=coordinates_of_weights(self._model.weights),
        )
        size = self.store.put(delta_name(link.to_step), lambda path: save(delta, path, self._encoding))
        return delta.nnz, size

    def _put_anchor(self, at: Pointer, live: Parts) -> int:
        """Write the anchor of the step that a pointer will name; return its bytes."""
        whole = self._model.whole(live, self._specs)
        link = Link(at.chain, at.step, at.step, at.state, at.state, at.version)

        def put() -> int:
            try:
                if not self._model.is_first:
                    return 0
                return write_anchor(self.store, link, self._specs, whole)
            finally:
                for _ in whole:  # exhaust it after a failure: all processes must assemble every tensor
                    pass

        return self._model.tell(self._model.together(put))

    def _write_anchor(self, live: Parts) -> _Step:
        """Continue a chain whose last state is not available."""
        self._model.together(lambda: _check(live))
        pointer = self._pointer.advanced(self._model.state(live, self._pointer.version))
        size = self._put_anchor(pointer, live)
        published = Published(pointer.step, pointer.state, self._count, self._count, 0, size)
        return _Step(pointer, published, None)

    def _keep(self, written: _Step, live: Mapping[str, Tensor]) -> None:
        """Update the publisher's own copy to a published step. Doing it twice does no harm."""
        if written.kept is None:
            for name, part in live.items():
                self._copy[name].copy_(part.reshape(-1))
            self._mismatched = not live  # recognised later, when the weights may have changed
        for name, (positions, new) in (written.kept or {}).items():
            copy = bits(self._copy[name])
            copy[positions.to(copy.device)] = bits(new).to(copy.device)
        self._pointer, self._unconfirmed = written.pointer, None

    def _start(self, live: Parts) -> Pointer:
        state = self._model.state(live, STATE_VERSION)
        pointer = Pointer(self._model.tell(uuid.uuid4().hex), 0, state, (state,))
        self._put_anchor(pointer, live)
        self._model.first(lambda: write_pointer(self.store, pointer))
        return pointer

    def _last_published(self, live: Parts) -> Mapping[str, Tensor]:
        """Return the weights of the chain's last step, or the model's own, with a flag, if those are not available."""
        if self._model.state(live, self._pointer.version) == self._pointer.state:
            return live
        try:
            if isinstance(self._model, ShardedWeights):
                raise ParameterMismatchError("no process of a sharded model reads the last step whole")
            follower = Follower.from_last_anchor(self.store, self._pointer)
            follower.update()
            check_same_specs(self._specs, specs_of(follower.weights), "the weights")
        except RSTError as error:
            warnings.warn(f"{error}; the next step of {self.store.location} will be an anchor", stacklevel=3)
            self._mismatched = True
            return live
        return {name: weight.to(live[name].device) for name, weight in follower.weights.items()}

    @property
    def _count(self) -> int:
        return sum(math.prod(shape) for _, shape in self._specs.values())


def _check(live: Parts) -> None:
    for name, part in live.items():
        check_real(name, part)
        check_no_nan(name, part)
