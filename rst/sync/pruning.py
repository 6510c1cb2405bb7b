"""The steps of a chain that nobody needs any more, deleted."""

import os
from dataclasses import dataclass

from rst.errors import ConfigError
from rst.sync.anchor import read_anchor
from rst.sync.chain import anchor_name, anchor_steps, delta_name, read_pointer, step_of_name
from rst.sync.store import Store, open_store


@dataclass(frozen=True)
class Pruned:
    """What `prune` has done.

    Attributes:
        first: the step that the chain now begins with, that of an anchor.
        anchors: how many anchors were deleted.
        deltas: how many deltas were deleted.
    """

    first: int
    anchors: int
    deltas: int


def prune(store: str | os.PathLike[str] | Store, keep_anchors: int = 2) -> Pruned:
    """Let a chain begin with a later anchor: delete the anchors before it, and the deltas up to it.

    The anchor that is to be the first is read and checked before. A follower that is further behind goes on from an
    anchor; publisher and followers may work meanwhile. A prune that is killed leaves a whole chain, and the next one
    deletes the rest.

    Args:
        store: the chain's folder, a URL for fsspec, or a `Store`.
        keep_anchors: how many of the last anchors stay; a chain with no more of them stays as it is.

    Raises:
        ConfigError: `keep_anchors` is below 1.
        ChainGapError: there is no chain, or it has no anchor.
        ChainDamageError: the pointer is damaged, or the anchor that the chain would begin with. Nothing is deleted.
    """
    if keep_anchors < 1:
        raise ConfigError(f"keep_anchors={keep_anchors}: a chain needs at least 1")
    store = open_store(store)
    anchors = anchor_steps(store, read_pointer(store).step)
    first = anchors[:keep_anchors][-1] if anchors else 0
    read_anchor(store, first)
    spent = sorted(step for step in anchors if step < first)
    names = set(store.names())
    deltas = sorted(name for name in names if (step := step_of_name(name)) is not None and _is_spent(name, step, first))
    # Anchors go first: a chain whose first anchor is not followed by its deltas would have a gap.
    for name in [*map(anchor_name, spent), *deltas]:
        store.delete(name)
    return Pruned(first, len(spent), len(deltas))


def _is_spent(name: str, step: int, first: int) -> bool:
    return name == delta_name(step) and step <= first
