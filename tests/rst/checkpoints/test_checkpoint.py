"""Every form a checkpoint comes in is read as the same weights."""

import json
import pickle
import tarfile
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file
from torch import nn

from rst import CheckpointError, open_checkpoint
from rst.numerics.exactness import bit_equal
from tests.refusal import refused

STATE = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.tensor([1.0, -0.0]).bfloat16()}


def assert_is_state(weights: Any) -> None:
    checkpoint = open_checkpoint(weights)
    assert dict(checkpoint).keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert bit_equal(checkpoint[name], tensor)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".th", ".bin"])
@pytest.mark.parametrize("nested", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_pickled_checkpoints(tmp_path: Path, suffix: str, nested: str | None, prefix: str) -> None:
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in STATE.items()}
    torch.save({nested: state, "epoch": 3} if nested else state, tmp_path / f"model{suffix}")
    assert_is_state(tmp_path / f"model{suffix}")


def test_the_pickle_format_before_zip(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_is_state(tmp_path / "old.pth")


def test_safetensors_folders_and_shards(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    assert_is_state(tmp_path / "model.safetensors")
    assert_is_state(tmp_path)
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, (name, tensor) in enumerate(STATE.items()):
        save_file({name: tensor}, shards / f"part-{number}.safetensors")
    weight_map = {name: f"part-{number}.safetensors" for number, name in enumerate(STATE)}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_is_state(shards)
    assert_is_state(shards / "model.safetensors.index.json")


def test_modules_and_mappings() -> None:
    module = nn.Module()
    module.layer = nn.Module()
    for name, tensor in STATE.items():
        setattr(module.layer, name.removeprefix("layer."), nn.Parameter(tensor))
    assert_is_state(module)
    assert_is_state(nn.DataParallel(module))
    assert_is_state(STATE)


def test_ties_are_found(tmp_path: Path) -> None:
    shared = torch.ones(3)
    torch.save({"a": shared, "b": shared, "c": torch.ones(3)}, tmp_path / "tied.pt")
    assert open_checkpoint(tmp_path / "tied.pt").tied == {"b": "a"}


INDEX = "model.safetensors.index.json"


def _write(name: str, content: bytes) -> Any:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _index(content: Any) -> Any:
    return _write(INDEX, json.dumps(content).encode())


def _pickle(content: Any) -> Any:
    def write(folder: Path) -> Path:
        torch.save(content, folder / "a.pt")
        return folder / "a.pt"

    return write


def _tar(folder: Path) -> Path:
    with tarfile.open(folder / "a.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return folder / "a.pt"


def _endless() -> dict[str, Any]:
    content: dict[str, Any] = {"w": torch.ones(1)}
    return content | {"state_dict": content.setdefault("state_dict", content)}


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("owned"),))


@pytest.mark.parametrize(
    ("make", "file", "shown"),
    [
        (lambda folder: folder / "nowhere.pt", "nowhere.pt", ""),
        (lambda folder: folder, None, "model.safetensors"),
        (_write("weights.h5", b""), "weights.h5", ".safetensors"),
        (_write("a.pt", b"not a checkpoint"), "a.pt", ""),
        (_write("a.pt", b""), "a.pt", ""),
        (_write("a.safetensors", b"\x08\0\0\0\0\0\0\0{}"), "a.safetensors", ""),
        (_write("a.pt", pickle.dumps(Hostile())), "a.pt", ""),
        (_index({}), INDEX, ""),
        (_index({"weight_map": {"w": "../elsewhere.safetensors"}}), INDEX, repr("../elsewhere.safetensors")),
        (_index({"weight_map": {"w": "missing.safetensors"}}), "missing.safetensors", ""),
        (_index({"weight_map": {"w": ".."}}), INDEX, repr("..")),
        (_index({"weight_map": {"w": ""}}), INDEX, repr("")),
        (_index({"weight_map": {"w": "model.safetensors.index.json"}}), INDEX, repr("model.safetensors.index.json")),
        (_index({"weight_map": {"w": "folder"}}), INDEX, repr("folder")),
        (_index({"weight_map": {"w": "a\0.safetensors"}}), INDEX, repr("a\0.safetensors")),
        (_index({"weight_map": [["w", "a.safetensors"]]}), INDEX, ""),
        (_index({"weight_map": {"w": 3}}), INDEX, ""),
        (_index({"weight_map": {}}), INDEX, ""),
        (_write(INDEX, b'{"weight_map": ' + b"[" * 100_000), INDEX, ""),
        (_write(INDEX, b'{"weight_map": {"w": "a", "w": "b"}}'), INDEX, "'w'"),
        (_pickle({"w": torch.ones(1).expand(1 << 40)}), "a.pt", 4398046511104),
        (_pickle({"w": torch.empty(3, device="meta")}), "a.pt", ""),
        (_pickle({1: torch.ones(3)}), "a.pt", "state_dict"),
        (_pickle(_endless()), "a.pt", ""),
        (_tar, "a.pt", "tar"),
        (_pickle([torch.ones(3)]), "a.pt", "state_dict"),
        (_write("a.safetensors", save_bytes({})), "a.safetensors", ""),
    ],
)
def test_unreadable_checkpoints_are_named(tmp_path: Path, make: Any, file: Any, shown: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(CheckpointError, shown, file=file, parameter=ANY):
        open_checkpoint(make(tmp_path))
    assert not (tmp_path / "owned").exists()


@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_refused_file_does_not_spoil_the_next_one(tmp_path: Path, zipped: bool) -> None:
    outside = torch.sparse_coo_tensor(torch.tensor([[1 << 20]]), torch.ones(1), (3,), check_invariants=False)
    torch.save({"w": outside, "trap": Hostile()}, tmp_path / "bad.pt", _use_new_zipfile_serialization=zipped)
    torch.save({"w": torch.ones(3)}, tmp_path / "good.pt")
    with refused(CheckpointError, file="bad.pt"):
        open_checkpoint(tmp_path / "bad.pt")
    assert torch.equal(open_checkpoint(tmp_path / "good.pt")["w"], torch.ones(3))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path, zipped: bool, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(1), "trap": Hostile()}, "a.pt", _use_new_zipfile_serialization=zipped)
    with refused(CheckpointError, file="a.pt"):
        open_checkpoint("a.pt")
    assert not Path("owned").exists()


def test_a_truncated_file_never_gives_weights(tmp_path: Path) -> None:
    for save, name in ((save_file, "a.safetensors"), (torch.save, "a.pt")):
        save(STATE, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        for size in (0, 4, len(content) // 2, len(content) - 1):
            (tmp_path / name).write_bytes(content[:size])
            with refused(CheckpointError, file=name):
                open_checkpoint(tmp_path / name)


def test_no_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with refused(CheckpointError, file="a.pt"):
        open_checkpoint(tmp_path / "a.pt")
    with refused(CheckpointError, file="state dict"):
        open_checkpoint({})
