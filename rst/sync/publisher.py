"""The sending side: after each optimizer step, what has changed since the last published one."""

import os
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Weights
from rst.config import BaseStorage
from rst.delta.file import save
from rst.delta.parameter_delta import Op, ParameterDelta, changed_weights, check_no_nan, check_real
from rst.delta.sparse_delta import BaseIdentity, Encoding, SparseDelta
from rst.errors import ConfigError, RSTError
from rst.numerics.exactness import bits
from rst.sync.anchor import write_anchor
from rst.sync.chain import HEADER_KEY, Link, Pointer, delta_name, read_pointer, write_pointer
from rst.sync.errors import ChainConflictError, ChainOrderError
from rst.sync.follower import Follower
from rst.sync.live import check_same_tensors, live_weights
from rst.sync.state import changed_state, fingerprint_state
from rst.sync.store import Store, open_store
from rst.sync.sweeping import sweep
from rst.training.base_weights import BaseWeights


@dataclass(frozen=True)
class Published:
    """A step that followers can have now.

    Attributes:
        step: its number.
        state: `fingerprint_state` of all weights.
        changed: weights that differ from the step before.
        weights: weights in all.
        delta_bytes: size of the delta; 0 where the step is an anchor alone.
        anchor_bytes: size of the anchor; 0 where there is none.
    """

    step: int
    state: str
    changed: int
    weights: int
    delta_bytes: int
    anchor_bytes: int


class Publisher:
    """Publish a model's weights as a chain.

    >>> publisher = Publisher(model, "/shared/chain", anchor_every=100)
    >>> for batch in batches:
    ...     train_step(batch)
    ...     publisher.publish()

    It keeps one copy of the weights as they were last published: beside them, in CPU memory, or in a mapped file that
    the system may drop from memory. Changes are found tensor by tensor on the weights' own device. A chain has one
    publisher at a time; one that was killed, at any point, is replaced by a new one on the same store: what was
    published stays, and the first `publish` brings followers from there to the model as it is then.
    """

    def __init__(
        self,
        weights: Weights,
        store: str | os.PathLike[str] | Store,
        *,
        anchor_every: int = 100,
        op: Op = "step",
        encoding: Encoding = "packed",
        base_storage: BaseStorage = "device",
    ) -> None:
        """Start a chain whose step 0 are these weights, or go on with the one that is in the store.

        A chain whose published weights cannot be read any more, or have other names, shapes or dtypes, goes on with an
        anchor at the next `publish`, with a warning.

        Args:
            weights: a module, a state dict, or anything `rst.open_checkpoint` takes. Its tensors are read at each
                `publish`; all parameters and persistent buffers belong to the chain, tied ones once.
            store: a folder, a URL for fsspec, or a `Store`.
            anchor_every: all weights are stored at each step that this divides.
            op: "step" (smallest in 16 bits), "replace" (absolute values) or "add" (residuals). All are exact.
            encoding: of the deltas, as `SparseDelta.save` takes it.
            base_storage: where the copy is kept: "device", "cpu" or "mmap".

        Raises:
            ConfigError: `anchor_every` is below 1.
            ChainDamageError: the chain's pointer is damaged.
            ParameterMismatchError: a complex tensor.
            NonFiniteError: a weight is NaN.
        """
        if anchor_every < 1:
            raise ConfigError(f"anchor_every={anchor_every}: must be at least 1")
        self.store = open_store(store)
        self._weights, self._anchor_every, self._op, self._encoding = weights, anchor_every, op, encoding
        live, _ = live_weights(weights)
        for name, weight in live.items():
            check_real(name, weight)
            check_no_nan(name, weight)
        state = fingerprint_state(live)
        pointer = sweep(self.store)
        self._mismatched = False
        if pointer is None:
            self._pointer = self._start(live, state)
        else:
            self._pointer = pointer
            live = self._last_published(live, state)
        self._shapes = {name: weight.to("meta") for name, weight in live.items()}
        self._copy = BaseWeights({name: weight.reshape(-1) for name, weight in live.items()}, base_storage)

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
            step: the number it must get, to be sure that trainer and chain agree; None takes the next.

        Raises:
            ChainOrderError: `step` is not the next.
            ChainConflictError: another publisher has moved the chain.
            NonFiniteError: a weight is NaN.
            ParameterMismatchError: names, shapes or dtypes changed since the publisher was made.
            OSError: the store cannot be written. In all these cases nothing is published.
        """
        following = self._pointer.step + 1
        if step not in (None, following):
            raise ChainOrderError(f"step {step}: the next step is {following}", file=self.store.location)
        if read_pointer(self.store) != self._pointer:
            raise ChainConflictError(
                f"no longer ends at step {self._pointer.step} as this publisher left it; "
                "a new Publisher goes on from what is there",
                file=self.store.location,
            )
        live, tied = live_weights(self._weights)
        check_same_tensors(live, self._shapes, "the weights")
        return self._publish_anchor(live) if self._mismatched else self._publish_delta(live, tied)

    @torch.no_grad()
    def _publish_delta(self, live: Mapping[str, Tensor], tied: Mapping[str, str]) -> Published:
        last, state, count = self._pointer, self._pointer.state, 0
        changes: dict[str, ParameterDelta] = {}
        kept: dict[str, tuple[Tensor, Tensor]] = {}
        for name, weight in live.items():
            flat, shape = weight.reshape(-1), tuple(weight.shape)
            positions, old, new = changed_weights(name, self._copy.on_device_of({name: flat})[name], flat)
            count += weight.numel()
            if positions.numel():
                state = changed_state(state, name, weight.dtype, shape, positions, old, new)
                changes[name] = ParameterDelta.at(positions, old, new, shape, None, self._op)
                kept[name] = positions, new
        link = Link(last.chain, last.step, last.step + 1, last.state, state)
        delta = SparseDelta(
            changes,
            tied={alias: owner for alias, owner in tied.items() if owner in changes},
            base=BaseIdentity(weights=count),
            config={HEADER_KEY: link.record()},
        )
        delta_bytes = self.store.put(delta_name(link.to_step), lambda path: save(delta, path, self._encoding))
        anchored = link.to_step % self._anchor_every == 0
        anchor_bytes = write_anchor(self.store, last.chain, link.to_step, state, live) if anchored else 0
        self._point_to(last.advanced(state))
        for name, (positions, new) in kept.items():
            copy = bits(self._copy[name])
            copy[positions.to(copy.device)] = bits(new).to(copy.device)
        return Published(link.to_step, state, delta.nnz, count, delta_bytes, anchor_bytes)

    def _publish_anchor(self, live: Mapping[str, Tensor]) -> Published:
        """Go on with a chain whose last state is not at hand."""
        for name, weight in live.items():
            check_no_nan(name, weight)
        last, state = self._pointer, fingerprint_state(live)
        size = write_anchor(self.store, last.chain, last.step + 1, state, live)
        self._point_to(last.advanced(state))
        for name, weight in live.items():
            self._copy[name].copy_(weight.reshape(-1))
        self._mismatched = False
        count = sum(weight.numel() for weight in live.values())
        return Published(self.step, state, count, count, 0, size)

    def _point_to(self, pointer: Pointer) -> None:
        """Publish; what follows only brings the publisher's own copy up to date."""
        write_pointer(self.store, pointer)
        self._pointer = pointer

    def _start(self, live: Mapping[str, Tensor], state: str) -> Pointer:
        pointer = Pointer(uuid.uuid4().hex, 0, state, (state,))
        write_anchor(self.store, pointer.chain, 0, state, live)
        write_pointer(self.store, pointer)
        return pointer

    def _last_published(self, live: dict[str, Tensor], state: str) -> dict[str, Tensor]:
        """The weights of the chain's last step; the model's own, with a mark, where those are not to be had."""
        if state == self._pointer.state:
            return live
        try:
            follower = Follower.from_last_anchor(self.store, self._pointer)
            follower.update()
            check_same_tensors(live, follower.weights, "the weights")
        except RSTError as error:
            warnings.warn(f"{error}; the next step of {self.store.location} is an anchor", stacklevel=3)
            self._mismatched = True
            return live
        return {name: weight.to(live[name].device) for name, weight in follower.weights.items()}
