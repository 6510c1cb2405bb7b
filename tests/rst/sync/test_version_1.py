"""A chain that release 0.1.0 wrote, whose states hash each weight alone: it is followed, and gone on with as it is."""

import base64
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rst.numerics.exactness import bit_equal
from rst.sync import ChainDamageError, ChainStateError, Follower, Publisher, open_store, prune, read_pointer, verify
from rst.sync.chain import anchor_name, delta_name, link_of, read_delta
from rst.sync.checkpoint_follower import follow_into
from tests.refusal import refused

LAST = 3


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    folder = tmp_path / "chain"
    folder.mkdir()
    for name, text in json.loads(Path(__file__).with_name("chain_of_version_1.json").read_text()).items():
        (folder / name).write_bytes(base64.b64decode(text))
    return folder


def state(step: int) -> dict[str, Tensor]:
    live = {"w": torch.arange(10.0).bfloat16().view(2, 5), "n": torch.arange(3)}
    for number in range(1, step + 1):
        live["w"][number % 2, number] += number
        live["n"][0] += 1
    return live


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(bit_equal(left[name], right[name]) for name in right)


@pytest.mark.parametrize("start", [0, 1, None])
def test_it_is_followed(chain: Path, start: int | None) -> None:
    live = {name: torch.zeros_like(weight) for name, weight in state(0).items()} if start is None else state(start)
    updated = Follower(live, chain).update()
    assert (updated.step, updated.from_step, updated.anchor) == (LAST, start, 2 if start is None else None)
    assert same(live, state(LAST))


def test_all_of_it_is_checked(chain: Path) -> None:
    assert (verify(chain).step, verify(chain).anchors) == (LAST, (0, 2))
    live = state(0)
    follower = Follower(live, chain)
    live["w"][1, 1] = 7  # by somebody else, before the follower knows the version
    with refused(ChainStateError, file=chain):
        follower.update()
    assert prune(chain, 1).first == 2


def test_a_publisher_goes_on_with_it_in_its_own_version(chain: Path) -> None:
    live = state(LAST)
    publisher = Publisher(live, chain, anchor_every=2)
    live["w"][0, 0] += 5
    assert publisher.publish().delta_bytes
    store = open_store(chain)
    assert json.loads((chain / "latest.json").read_text())["format_version"] == read_pointer(store).version == 1
    assert "version" not in read_delta(store, LAST + 1)[0].config["sync"]
    assert link_of(read_delta(store, LAST + 1)[0]).version == 1
    assert (chain / anchor_name(LAST + 1)).is_file()
    assert verify(chain).step == LAST + 1
    followed = state(0)
    Follower(followed, chain).update()
    assert same(followed, live)


def test_files_follow_it(chain: Path, tmp_path: Path) -> None:
    into = tmp_path / "model.safetensors"
    assert follow_into(into, chain)[:2] == (None, LAST)
    assert follow_into(into, chain)[:2] == (LAST, LAST)


@pytest.mark.parametrize("version", [0, 3, "2", True])
def test_versions_that_are_not_known(tmp_path: Path, version: object) -> None:
    Publisher(state(0), tmp_path).publish()
    pointer = json.loads((tmp_path / "latest.json").read_text())
    assert pointer["format_version"] == 2
    (tmp_path / "latest.json").write_text(json.dumps(pointer | {"format_version": version}))
    with refused(ChainDamageError, str(version), "1 and 2", file="latest.json"):
        read_pointer(open_store(tmp_path))


def test_a_link_of_another_version(tmp_path: Path) -> None:
    live = state(0)
    publisher = Publisher(live, tmp_path)
    live["n"] += 1
    publisher.publish()
    delta = read_delta(open_store(tmp_path), 1)[0]
    assert delta.config["sync"]["version"] == 2
    for version, words in ((3, ("3", "1 and 2")), ("2", ("version",))):
        delta.config["sync"]["version"] = version
        with refused(ChainDamageError, *words, file=delta_name(1)):
            link_of(delta, delta_name(1))
