"""Verification of a whole chain from its first anchor to its last step: every file and every state."""

import os
from dataclasses import dataclass

from rst.sync.chain import anchor_steps, delta_name, read_delta, read_pointer
from rst.sync.errors import ChainGapError, ChainStateError
from rst.sync.follower import Follower
from rst.sync.store import Store, open_store


@dataclass(frozen=True)
class ChainReport:
    """The intact chain that was found.

    Attributes:
        chain: the chain's identity.
        first: the step of the anchor that the check started from; earlier steps no longer exist.
        step: the last published step.
        state: `fingerprint_state` of all weights there.
        anchors: steps with an anchor, in order.
        deltas: number of deltas applied.
        changed: number of weights that they change, summed.
        weights: number of weights of the model.
    """

    chain: str
    first: int
    step: int
    state: str
    anchors: tuple[int, ...]
    deltas: int
    changed: int
    weights: int


def verify(store: str | os.PathLike[str] | Store) -> ChainReport:
    """Replay a chain in CPU memory and check all of it: digests, order, and the state after each step.

    Every step must have its delta or its anchor. If it has both, they must agree bit for bit.

    Raises:
        ChainGapError: there is no chain, no anchor, or a step has neither delta nor anchor.
        ChainDamageError: a file is damaged.
        ChainOrderError: a file belongs to another step or chain.
        ChainStateError: a step does not lead to the state that it names.
    """
    store = open_store(store)
    pointer = read_pointer(store)
    anchors = sorted(anchor_steps(store, pointer.step))
    names = set(store.names())
    if not anchors:
        raise ChainGapError("has no anchor", file=store.location)
    replay = Follower.from_anchor(store, anchors[0])
    deltas = changed = 0
    for step in range(anchors[0], pointer.step + 1):
        if step > anchors[0] and delta_name(step) in names:
            delta, _, _ = read_delta(store, step)
            replay.apply(delta)
            deltas, changed = deltas + 1, changed + delta.nnz
        elif step not in anchors:
            raise ChainGapError(f"step {step} has neither a delta nor an anchor", file=store.location)
        if step in anchors:
            replay.verify()
            anchored = Follower.from_anchor(store, step)
            if delta_name(step) in names and step > anchors[0] and anchored.state != replay.state:
                raise ChainStateError(
                    f"the delta of step {step} makes {replay.state}, but its anchor is {anchored.state}",
                    file=store.location,
                )
            replay = anchored
        if pointer.expected(step) not in (None, replay.state):
            raise ChainStateError(
                f"step {step} is {replay.state}, but the chain's pointer says {pointer.expected(step)}",
                file=store.location,
            )
    replay.verify()
    weights = sum(weight.numel() for weight in replay.weights.values())
    return ChainReport(pointer.chain, anchors[0], pointer.step, pointer.state, tuple(anchors), deltas, changed, weights)
