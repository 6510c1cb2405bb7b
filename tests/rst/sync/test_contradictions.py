"""Files whose digests are right and whose contents are not those of their place: no follower takes them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rst import ConfigError, RSTError, SparseDelta
from rst.delta.embedded_digest import write_sealed
from rst.files.safetensors_writer import specs_of
from rst.sync import (
    ChainDamageError,
    ChainGapError,
    ChainOrderError,
    ChainStateError,
    FolderStore,
    Follower,
    Link,
    Pointer,
    Publisher,
    fingerprint_state,
    link_of,
    open_store,
    prune,
    read_pointer,
    verify,
)
from rst.sync.anchor import write_anchor
from rst.sync.chain import HEADER_KEY, POINTER, anchor_name, delta_name, write_pointer
from tests.refusal import refused

State = dict[str, Tensor]


def state(step: int) -> State:
    return {"w": torch.arange(6.0).view(2, 3) + step, "v": torch.ones(2)}


def chain(folder: Path, steps: int = 3, **settings: Any) -> Pointer:
    """Publish states 0 to `steps`."""
    weights = state(0)
    publisher = Publisher(weights, folder, **settings)
    for step in range(1, steps + 1):
        weights["w"].copy_(state(step)["w"])
        publisher.publish()
    return read_pointer(open_store(folder))


def follower_at(folder: Path, step: int) -> Follower:
    """One whose weights are those of a step, and which knows it."""
    store = open_store(folder)
    now = read_pointer(store)
    write_pointer(store, replace(now, step=step, states=now.states[: step + 1]))
    follower = Follower(state(0), folder)
    assert follower.update().step == step
    write_pointer(store, now)
    return follower


def stays(follower: Follower, error: type[RSTError], *words: str, file: str | None = None) -> None:
    """It refuses the next update and stays as it is."""
    before = follower.state
    with refused(error, *words, file=file):
        follower.update()
    assert follower.state == before == fingerprint_state(follower.weights)


def sealed(path: Path, weights: State, **metadata: str) -> None:
    specs = specs_of(weights)
    write_sealed(path, specs, (weights[name] for name in specs), metadata)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "line 1 column 2"),
        ('{"chain": "c"}', "['chain']"),
        ('{"chain": "c", "after": "0", "step": 0, "applies_to": "", "yields": ""}', "after is a str"),
        ('{"chain": "c", "after": 3, "step": 1, "applies_to": "", "yields": ""}', "from 3 to 1"),
        ("null", "no chain"),
    ],
)
def test_an_anchor_with_a_header_of_something_else(tmp_path: Path, text: str, word: str) -> None:
    sealed(tmp_path / anchor_name(0), state(0), sync=text)
    with refused(ChainDamageError, word, file=anchor_name(0)):
        Follower.from_anchor(tmp_path, 0)


def test_an_anchor_in_the_place_of_another(tmp_path: Path) -> None:
    chain(tmp_path / "one", anchor_every=2)
    chain(tmp_path / "two", anchor_every=2)
    shutil.copy(tmp_path / "one" / anchor_name(0), tmp_path / "one" / anchor_name(2))
    with refused(ChainDamageError, "step 0", file=anchor_name(2)):
        Follower.from_anchor(tmp_path / "one", 2)
    for step in (0, 2):
        shutil.copy(tmp_path / "two" / anchor_name(step), tmp_path / "one" / anchor_name(step))
    stays(Follower({"w": torch.zeros(2, 3), "v": torch.zeros(2)}, tmp_path / "one"), ChainOrderError, "step 2")


def test_no_anchor_at_all(tmp_path: Path) -> None:
    pointer = chain(tmp_path)
    (tmp_path / anchor_name(0)).unlink()
    for attempt in (lambda: verify(tmp_path), lambda: Follower.from_last_anchor(tmp_path, pointer)):
        with refused(ChainGapError, "anchor", file=tmp_path):
            attempt()


def test_a_pointer_that_says_otherwise_than_the_files(tmp_path: Path) -> None:
    pointer, store = chain(tmp_path), open_store(tmp_path)
    follower = follower_at(tmp_path, 1)
    other = tuple("other" if step == 2 else known for step, known in enumerate(pointer.states))
    write_pointer(store, replace(pointer, states=other))
    stays(follower, ChainStateError, "step 2", pointer.states[2])
    with refused(ChainStateError, "step 2", pointer.states[2], "other", file=tmp_path):
        verify(tmp_path)
    write_pointer(store, pointer)
    assert follower.update().step == 3
    write_pointer(store, replace(pointer, states=(*pointer.states[:-1], "other")))
    stays(follower, ChainStateError, "other", file=str(tmp_path))
    write_pointer(store, replace(pointer, step=1, states=pointer.states[:2]))
    stays(follower, ChainOrderError, "step 1", "at 3", file=str(tmp_path))
    write_pointer(store, replace(pointer, step=1))
    stays(follower, ChainDamageError, "4 states of 2 steps", file=POINTER)


def test_what_a_pointer_knows_of_old_steps() -> None:
    pointer = Pointer("c", 5, "base", ("four", "five"))
    assert [pointer.expected(step) for step in (0, 3, 4, 5)] == ["base", None, "four", "five"]


def test_a_delta_for_another_state(tmp_path: Path) -> None:
    chain(tmp_path)
    follower = follower_at(tmp_path, 1)
    path = tmp_path / delta_name(2)
    delta = SparseDelta.load(path)
    config = {HEADER_KEY: replace(link_of(delta), state_before="other").record()}
    replace(delta, config=config).save(path)
    stays(follower, ChainStateError, "step 2", "other")


@pytest.mark.parametrize("entry", ["state_before", "state_after"])
@pytest.mark.parametrize("known", [True, False], ids=["known to the pointer", "forgotten by it"])
def test_a_step_that_contradicts_gives_way_to_a_later_anchor(tmp_path: Path, entry: str, known: bool) -> None:
    pointer = chain(tmp_path, steps=5, anchor_every=4)
    delta = SparseDelta.load(tmp_path / delta_name(2))
    link = replace(link_of(delta), **{entry: "0123456789abcdef"})
    replace(delta, config={HEADER_KEY: link.record()}).save(tmp_path / delta_name(2))
    if not known:
        write_pointer(open_store(tmp_path), replace(pointer, states=pointer.states[-1:]))
    live = state(0)
    with pytest.warns(UserWarning, match="anchor of step 4"):
        assert Follower(live, tmp_path).update().step == 5
    assert torch.equal(live["w"], state(5)["w"])
    assert Publisher(state(6), tmp_path).publish().delta_bytes > 0
    other = state(0)
    follower = Follower(other, tmp_path)
    other["v"][0] = 7  # by somebody else, which no anchor may hide
    with refused(ChainStateError, "step 2", file=tmp_path):
        follower.update()
    assert other["v"][0] == 7


def test_an_anchor_that_is_not_what_its_delta_makes(tmp_path: Path) -> None:
    pointer = chain(tmp_path, anchor_every=2)
    specs = specs_of(state(7))
    tensors = (state(7)[name] for name in specs)
    other = fingerprint_state(state(7))
    write_anchor(open_store(tmp_path), Link(pointer.chain, 2, 2, other, other), specs, tensors)
    with refused(ChainStateError, "step 2", other, file=tmp_path):
        verify(tmp_path)


def test_settings_that_mean_nothing(tmp_path: Path) -> None:
    with refused(ConfigError, "anchor_every=0"):
        Publisher(state(0), tmp_path / "x", anchor_every=0)
    with refused(ConfigError, "fsspec", file="nowhere://x"):
        Publisher(state(0), "nowhere://x")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_chain_of_fsspec_is_pruned() -> None:
    pytest.importorskip("fsspec")
    weights = state(0)
    publisher = Publisher(weights, "memory://chains/pruned", anchor_every=1)
    for step in (1, 2, 3):
        weights["w"].copy_(state(step)["w"])
        publisher.publish()
    prune("memory://chains/pruned", keep_anchors=1)
    names = set(open_store("memory://chains/pruned").names())
    assert anchor_name(3) in names
    assert not {anchor_name(0), anchor_name(1), delta_name(1)} & names
    assert verify("memory://chains/pruned").first == 3


def test_a_bool_of_another_value(tmp_path: Path) -> None:
    two = torch.tensor([1, 2, 0], dtype=torch.uint8).view(torch.bool)
    sealed(tmp_path / anchor_name(0), {"mask": two}, sync="null")
    with refused(ChainDamageError, "bool", file=anchor_name(0)):
        Follower.from_anchor(tmp_path, 0)


class Pruned(FolderStore):
    """A folder in which files are deleted between the moments of finding and of reading them."""

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        with super().fetch(name) as path:
            if name != POINTER:
                path.unlink()
            yield path


def test_files_that_are_deleted_once_found_are_gaps(tmp_path: Path) -> None:
    chain(tmp_path)
    follower = follower_at(tmp_path, 1)
    follower.store = Pruned(tmp_path)
    stays(follower, ChainGapError, file=delta_name(2))
    with refused(ChainGapError, file=anchor_name(0)):
        Follower.from_anchor(Pruned(tmp_path), 0)
