"""Deletion of the steps of a chain that are no longer needed."""

import os
from dataclasses import dataclass

from rst.errors import ConfigError
from rst.sync.anchor import read_anchor
from rst.sync.chain import anchor_name, anchor_steps, delta_name, read_pointer, step_of_name
from rst.sync.store import Store, open_store


@dataclass(frozen=True)
class Pruned:
    """The result of `prune`.

    Attributes:
        first: the first step of the chain now, that of an anchor.
        anchors: number of anchors deleted.
        deltas: number of deltas deleted.
    """

    first: int
    anchors: int
    deltas: int


def prune(store: str | os.PathLike[str] | Store, keep_anchors: int = 2) -> Pruned:
    """Make a chain begin with a later anchor: delete the anchors before it, and the deltas up to it.

    The new first anchor is read and checked before. A follower that is further behind continues from an anchor;
    publisher and followers may work meanwhile. A prune that is killed leaves a complete chain, and the next one deletes
    the rest.

    Args:
        store: the chain's folder, a URL for fsspec, or a `Store`.
        keep_anchors: number of last anchors to keep; a chain with no more than these is not changed.

    Raises:
        ConfigError: `keep_anchors` is below 1.
        ChainGapError: there is no chain, or it has no anchor.
        ChainDamageError: the pointer or the new first anchor is damaged. Nothing is deleted.
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
    # Anchors are deleted first: a chain whose first anchor lacks its following deltas would have a gap.
    for name in [*map(anchor_name, spent), *deltas]:
        store.delete(name)
    return Pruned(first, len(spent), len(deltas))


def _is_spent(name: str, step: int, first: int) -> bool:
    return name == delta_name(step) and step <= first
