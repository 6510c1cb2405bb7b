"""Files whose digests are right and whose contents are not those of their place: no follower takes them."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rst import CheckpointError, ConfigError, ParameterMismatchError, RSTError, SparseDelta, export
from rst.delta.seal import BLANK, seal
from rst.files.safetensors_writer import specs_of, write_safetensors
from rst.sync import (
    ChainDamageError,
    ChainGapError,
    ChainOrderError,
    ChainStateError,
    FolderStore,
    Follower,
    Pointer,
    Publisher,
    fingerprint_state,
    link_of,
    open_store,
    prune,
    read_pointer,
    squash,
    verify,
    write_version,
)
from rst.sync.anchor import write_anchor
from rst.sync.chain import POINTER, anchor_name, delta_name, header, write_pointer

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
    assert follower.update() == step
    write_pointer(store, now)
    return follower


def refused(follower: Follower, error: type[RSTError], message: str) -> None:
    """It raises and stays as it is."""
    before = follower.state
    with pytest.raises(error, match=message):
        follower.update()
    assert follower.state == before == fingerprint_state(follower.weights)


def sealed(path: Path, weights: State, **metadata: str) -> None:
    specs = specs_of(weights)
    write_safetensors(path, specs, (weights[name] for name in specs), {**metadata, "digest": BLANK})
    seal(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its header cannot be read"),
        ('{"chain": "c"}', "its header's link is malformed"),
        ('{"chain": "c", "after": "0", "step": 0, "applies_to": "", "yields": ""}', "its header's link is malformed"),
        ('{"chain": "c", "after": 3, "step": 1, "applies_to": "", "yields": ""}', "steps, from 3 to 1, are malformed"),
        ("null", "its header names no chain"),
    ],
)
def test_an_anchor_with_a_header_of_something_else(tmp_path: Path, text: str, message: str) -> None:
    sealed(tmp_path / anchor_name(0), state(0), sync=text)
    with pytest.raises(ChainDamageError, match=message):
        Follower.from_anchor(tmp_path, 0)


def test_an_anchor_in_the_place_of_another(tmp_path: Path) -> None:
    chain(tmp_path / "one", anchor_every=2)
    chain(tmp_path / "two", anchor_every=2)
    shutil.copy(tmp_path / "one" / anchor_name(0), tmp_path / "one" / anchor_name(2))
    with pytest.raises(ChainDamageError, match="holds step 0"):
        Follower.from_anchor(tmp_path / "one", 2)
    for step in (0, 2):
        shutil.copy(tmp_path / "two" / anchor_name(step), tmp_path / "one" / anchor_name(step))
    refused(Follower({"w": torch.zeros(2, 3), "v": torch.zeros(2)}, tmp_path / "one"), ChainOrderError, "another chain")


def test_no_anchor_at_all(tmp_path: Path) -> None:
    pointer = chain(tmp_path)
    (tmp_path / anchor_name(0)).unlink()
    for attempt in (lambda: verify(tmp_path), lambda: Follower.from_last_anchor(tmp_path, pointer)):
        with pytest.raises(ChainGapError, match="has no anchor"):
            attempt()


def test_a_pointer_that_says_otherwise_than_the_files(tmp_path: Path) -> None:
    pointer, store = chain(tmp_path), open_store(tmp_path)
    follower = follower_at(tmp_path, 1)
    other = tuple("other" if step == 2 else known for step, known in enumerate(pointer.states))
    write_pointer(store, replace(pointer, states=other))
    refused(follower, ChainStateError, "step 2 yields .*, the chain says otherwise")
    with pytest.raises(ChainStateError, match="step 2 is .*, the chain's pointer says other"):
        verify(tmp_path)
    write_pointer(store, pointer)
    assert follower.update() == 3
    write_pointer(store, replace(pointer, states=(*pointer.states[:-1], "other")))
    refused(follower, ChainStateError, "the chain's is other")
    write_pointer(store, replace(pointer, step=1, states=pointer.states[:2]))
    refused(follower, ChainOrderError, "ends at step 1, the model is at 3")
    write_pointer(store, replace(pointer, step=1))
    refused(follower, ChainDamageError, "4 states of 2 steps")


def test_what_a_pointer_knows_of_old_steps() -> None:
    pointer = Pointer("c", 5, "base", ("four", "five"))
    assert [pointer.expected(step) for step in (0, 3, 4, 5)] == ["base", None, "four", "five"]


def test_a_delta_for_another_state(tmp_path: Path) -> None:
    chain(tmp_path)
    follower = follower_at(tmp_path, 1)
    path = tmp_path / delta_name(2)
    delta = SparseDelta.load(path)
    replace(delta, config=header(replace(link_of(delta), applies_to="other"))).save(path)
    refused(follower, ChainStateError, "step 2 applies to other")


def test_an_anchor_that_is_not_what_its_delta_yields(tmp_path: Path) -> None:
    pointer = chain(tmp_path, anchor_every=2)
    write_anchor(open_store(tmp_path), pointer.chain, 2, fingerprint_state(state(7)), state(7))
    with pytest.raises(ChainStateError, match="step 2: the delta yields .*, the anchor is"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (export(state(1), {**state(1), "v": torch.zeros(2)}, modules_to_save=["v"]), "stores 1 tensors whole"),
        (export({"w": torch.ones(5)}, {"w": torch.zeros(5)}, op="step"), r"then op \"step\" torch.float32 \(5,\)"),
        (export(state(1), state(2), op="replace"), 'then op "replace"'),
    ],
)
def test_deltas_of_other_kinds_are_not_squashed(tmp_path: Path, second: SparseDelta, message: str) -> None:
    chain(tmp_path, op="step")
    first, after = (SparseDelta.load(tmp_path / delta_name(step)) for step in (1, 2))
    with pytest.raises(ParameterMismatchError, match=message):
        squash(first, replace(second, config=after.config))


def test_settings_that_mean_nothing(tmp_path: Path) -> None:
    attempts: list[tuple[Callable[[], object], type[RSTError], str]] = [
        (lambda: Publisher(state(0), tmp_path / "x", anchor_every=0), ConfigError, "anchor_every=0"),
        (lambda: Publisher(state(0), "nowhere://x"), ConfigError, "nowhere://x: a URL needs fsspec with support"),
        (lambda: write_version(tmp_path / "x", 0, {}), CheckpointError, "no weights to write"),
        (lambda: write_version(tmp_path / "x", 1, state(0), base_version=0), ConfigError, "weights none"),
        (lambda: write_version(tmp_path / "x", 1, export(state(0), state(1))), ConfigError, "a delta has a base"),
    ]
    for attempt, error, message in attempts:
        with pytest.raises(error, match=message):
            attempt()
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
    with pytest.raises(ChainDamageError, match="a bool is 0 or 1"):
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
    refused(follower, ChainGapError, "delta-0000000002")
    with pytest.raises(ChainGapError, match="anchor-0000000000"):
        Follower.from_anchor(Pruned(tmp_path), 0)
