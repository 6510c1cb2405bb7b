"""The index of a sharded checkpoint, whose shards must lie beside it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from rst.checkpoints.checkpoint import Checkpoint
from tests.fuzz.safetensors_mutation import mutate_text
from tests.fuzz.target import Target
from tests.fuzz.targets.weights import read

_FILE = "model.safetensors.index.json"


def seeds() -> list[bytes]:
    maps = [
        {"a": "part-1.safetensors", "b": "part-2.safetensors"},
        {"a": "part-1.pt", "b": "part-2.safetensors"},
        {"a": _FILE},
        {"a": ".."},
        {"secret": "../secret.safetensors"},
        {"a": "sub"},
    ]
    return [json.dumps({"metadata": {"total_size": 12}, "weight_map": names}).encode() for names in maps]


def prepare(folder: Path) -> None:
    """Two shards, and outside the folder a file that nobody may read."""
    save_file({"a": torch.ones(3)}, folder / "part-1.safetensors")
    save_file({"b": torch.ones(4)}, folder / "part-2.safetensors")
    torch.save({"a": torch.ones(3)}, folder / "part-1.pt")
    save_file({"secret": torch.ones(1)}, folder.parent / "secret.safetensors")
    save_file({"a": torch.ones(1)}, folder.parent / "model.safetensors")
    (folder / "sub").mkdir(exist_ok=True)
    save_file({"a": torch.full((1,), 7.0)}, folder / "sub" / "model.safetensors")


def use(checkpoint: Checkpoint) -> None:
    assert all(len(checkpoint[name]) in (3, 4) for name in checkpoint), "read from outside the folder"


INDEX = Target("shard_index", _FILE, seeds, mutate_text, read, use, prepare)
