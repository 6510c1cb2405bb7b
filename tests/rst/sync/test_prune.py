"""A chain without its old steps: whole at any moment, and followed by whoever was behind."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rst import ConfigError
from rst.numerics.exactness import bit_equal
from rst.sync import ChainDamageError, ChainGapError, FolderStore, Follower, Publisher, prune, verify
from rst.sync.chain import anchor_name, delta_name
from tests.refusal import refused

STEPS, ANCHOR_EVERY = 10, 3


def publish_chain(store: Path) -> list[dict[str, Tensor]]:
    """Steps 0 to 10, with anchors at 0, 3, 6 and 9; returns the weights of each."""
    live = {"a": torch.arange(20.0), "b": torch.ones(3, dtype=torch.bfloat16)}
    publisher, states = Publisher(live, store, anchor_every=ANCHOR_EVERY), []
    for step in range(STEPS + 1):
        states.append({name: weight.clone() for name, weight in live.items()})
        live["a"][step] += 1
        live["b"] += 1
        if step < STEPS:
            publisher.publish()
    return states


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Tensor]]]:
    store = tmp_path_factory.mktemp("chain") / "published"
    return store, publish_chain(store)


@settings(max_examples=15, deadline=None)
@given(keep=st.integers(1, 6), behind=st.integers(0, STEPS))
def test_who_is_behind_goes_on_from_an_anchor(
    published: tuple[Path, list[dict[str, Tensor]]], keep: int, behind: int
) -> None:
    states, store = published[1], published[0].with_name("pruned")
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(published[0], store)
    follower = Follower({name: weight.clone() for name, weight in states[behind].items()}, store)
    pruned = prune(store, keep)
    first = [0, 0, 3, 6, 9][-keep:][0] if keep < 4 else 0
    assert (pruned.first, pruned.anchors, pruned.deltas) == (first, first // ANCHOR_EVERY, first)
    assert sorted(path.name for path in store.glob("*-*")) == sorted(
        [anchor_name(step) for step in (0, 3, 6, 9) if step >= first]
        + [delta_name(step) for step in range(first + 1, STEPS + 1)]
    )
    assert follower.update().step == STEPS
    assert all(bit_equal(follower.weights[name], weight) for name, weight in states[-1].items())
    report = verify(store)
    assert (report.first, report.step) == (first, STEPS)


class FailingStore(FolderStore):
    """Deletes some files, then is killed."""

    def __init__(self, folder: Path, deletions: int) -> None:
        super().__init__(folder)
        self.left = deletions

    def delete(self, name: str) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        super().delete(name)


@pytest.mark.parametrize("deletions", range(8))
def test_a_prune_that_is_killed_leaves_a_whole_chain(tmp_path: Path, deletions: int) -> None:
    states = publish_chain(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prune(FailingStore(tmp_path, deletions), 2)
    assert verify(tmp_path).step == STEPS
    stranger = Follower({name: torch.zeros_like(weight) for name, weight in states[0].items()}, tmp_path)
    assert stranger.update().step == STEPS
    pruned = prune(tmp_path, 2)
    assert (pruned.first, pruned.anchors + pruned.deltas) == (6, 8 - deletions)


def test_a_publisher_goes_on_after_it(tmp_path: Path) -> None:
    live = {"a": torch.arange(20.0)}
    publisher = Publisher(live, tmp_path, anchor_every=2)
    for step in range(1, 6):
        live["a"] += 1
        assert publisher.publish().step == step
        prune(tmp_path, 1)
    assert Publisher(live, tmp_path, anchor_every=2).publish().step == 6
    assert verify(tmp_path).first == 4


def test_nothing_is_deleted_for_a_damaged_anchor(tmp_path: Path) -> None:
    publish_chain(tmp_path)
    anchor = tmp_path / anchor_name(6)
    anchor.write_bytes(anchor.read_bytes()[:-1] + b"x")
    before = sorted(tmp_path.iterdir())
    with refused(ChainDamageError, file=anchor.name):
        prune(tmp_path, 2)
    assert sorted(tmp_path.iterdir()) == before


def test_refusals(tmp_path: Path) -> None:
    with refused(ChainGapError, file="latest.json"):
        prune(tmp_path)
    publish_chain(tmp_path)
    with refused(ConfigError, "keep_anchors=0"):
        prune(tmp_path, 0)
