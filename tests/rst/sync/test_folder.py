"""A model folder of shards follows a chain: its weights are those of one step, whoever reads it and whenever."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rst import CheckpointError, ParameterMismatchError, open_checkpoint
from rst.files.locks import Lock
from rst.numerics.exactness import bit_equal
from rst.sync import ChainDamageError, Publisher, fingerprint_state
from rst.sync import folder_follower as folders
from rst.sync.checkpoint_follower import follow_into
from tests.refusal import refused

State = dict[str, Tensor]
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def state_at(step: int) -> State:
    """`a`, in the first shard, changes at each step; `b` and `c`, in the second, at steps 2, 4, ..."""
    torch.manual_seed(0)
    state = {"a": torch.randn(40, 3).bfloat16(), "b": torch.randn(9), "c": torch.randn(()).double()}
    state["a"][:step] += 1
    state["b"][: step // 2] -= 1
    return state


def write_folder(folder: Path, state: State) -> Path:
    folder.mkdir()
    save_file({"a": state["a"]}, folder / SHARDS[0], {"format": "pt", "by": "hand"})
    save_file({"b": state["b"], "c": state["c"]}, folder / SHARDS[1])
    weight_map = {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 284, "of": "mine"}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


def publish(store: Path, steps: int, **settings: int) -> None:
    live = state_at(0)
    publisher = Publisher(live, store, **settings)
    for step in range(1, steps + 1):
        for name, tensor in state_at(step).items():
            live[name].copy_(tensor)
        publisher.publish()


def same(folder: Path, step: int) -> bool:
    found, wanted = open_checkpoint(folder), state_at(step)
    return found.keys() == wanted.keys() and all(bit_equal(found[name], wanted[name]) for name in wanted)


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_follow_and_those_that_do_not_change_stay(tmp_path: Path) -> None:
    folder, chain = write_folder(tmp_path / "model", state_at(0)), tmp_path / "chain"
    (folder / SHARDS[0]).chmod(0o640)
    for step in (1, 2, 5):
        publish(chain / str(step), step)
        came_from, reached, state = follow_into(folder, chain / str(step))
        assert (came_from, reached, state) == (({1: 0, 2: 1, 5: 2})[step], step, fingerprint_state(state_at(step)))
        assert same(folder, step)
        first, second = (f"{Path(shard).stem}.{state}.safetensors" for shard in SHARDS)
        assert weight_map(folder)["a"] == first
        assert (weight_map(folder)["b"] == SHARDS[1]) == (step == 1)
        assert names(folder) == {INDEX, "config.json", first, SHARDS[1] if step == 1 else second}
    assert json.loads((folder / INDEX).read_text())["metadata"] == {"total_size": 284, "of": "mine"}
    assert open_checkpoint(folder / first).metadata == {"format": "pt", "by": "hand"}
    assert (folder / first).stat().st_mode & 0o777 == 0o640
    before = contents(folder)
    assert follow_into(folder, chain / "5")[:2] == (5, 5)
    assert contents(folder) == before


def test_weights_of_no_step_come_from_an_anchor(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", {name: tensor * 3 for name, tensor in state_at(0).items()})
    publish(tmp_path / "chain", 3, anchor_every=2)
    assert follow_into(folder, tmp_path / "chain")[:2] == (None, 3)
    assert same(folder, 3)


def test_a_shard_whose_tensors_lie_at_odd_places_follows(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", state_at(0))
    shard = folder / SHARDS[1]
    raw = shard.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = raw[8:end].rstrip(b" ") + b" " * 3
    shard.write_bytes(len(header).to_bytes(8, "little") + header + raw[end:])
    publish(tmp_path / "chain", 4)
    assert follow_into(folder, tmp_path / "chain")[:2] == (0, 4)
    assert same(folder, 4)


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_that_are_missing_are_made_beside_what_is_there(
    tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "LARGEST_SHARD", {1: "5GB", 3: 1}[shards])
    publish(tmp_path / "chain", 3)
    folder = tmp_path / "model"
    for config in ({}, {"config.json": b"{}"}):
        for name, text in config.items():
            folder.mkdir()
            (folder / name).write_bytes(text)
        assert follow_into(folder, tmp_path / "chain")[:2] == (None, 3)
        assert same(folder, 3)
        assert len(names(folder)) == len(config) + {1: 1, 3: 4}[shards]
        assert follow_into(folder, tmp_path / "chain")[:2] == (3, 3)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_refusals_leave_every_byte(tmp_path: Path) -> None:
    folder, chain = write_folder(tmp_path / "model", state_at(0)), tmp_path / "chain"
    publish(chain, 3)
    before = contents(folder)
    lock = Lock(folder / ".rst-follow.lock")
    with refused(CheckpointError, file=folder):
        follow_into(folder, chain)
    lock.release()
    delta = chain / "delta-0000000003.safetensors"
    whole = delta.read_bytes()
    delta.write_bytes(whole[:-1])
    with refused(ChainDamageError, file=delta):
        follow_into(folder, chain)
    delta.write_bytes(whole)
    assert contents(folder) == before
    other = write_folder(tmp_path / "other", {**state_at(0), "c": torch.zeros(2)})
    with refused(ParameterMismatchError, parameter="c"):
        follow_into(other, chain)
    assert names(other) == names(folder)


def test_folders_that_cannot_follow_are_refused(tmp_path: Path) -> None:
    publish(tmp_path / "chain", 1)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(state_at(0), pickled / "pytorch_model.bin")
    linked = write_folder(tmp_path / "linked", state_at(0))
    (linked / INDEX).rename(linked / "elsewhere")
    (linked / INDEX).symlink_to("elsewhere")
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "model_index.json").write_text("{}")
    for folder, file in ((pickled, "pytorch_model.bin"), (linked, INDEX), (pipeline, "model_index.json")):
        before = contents(folder)
        with refused(CheckpointError, file=folder / file):
            follow_into(folder, tmp_path / "chain")
        assert contents(folder) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    save_file(state_at(0), foreign / "adapter_model.safetensors")
    with refused(CheckpointError, file=foreign):
        follow_into(foreign, tmp_path / "chain")
    assert names(foreign) == {"adapter_model.safetensors"}


def test_a_reader_with_the_old_index_finds_no_mixture(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", state_at(0))
    publish(tmp_path / "chain", 2)
    old = weight_map(folder)
    follow_into(folder, tmp_path / "chain")
    assert not any((folder / file).exists() for file in old.values())
