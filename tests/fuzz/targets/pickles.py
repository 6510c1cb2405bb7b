"""Pickled checkpoints in torch's two formats; nothing in them may run, or ask for more than the file holds."""

import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rst.checkpoints.checkpoint import Checkpoint
from tests.fuzz.pickle_mutation import mutate_pickle, mutate_zip
from tests.fuzz.target import Target
from tests.fuzz.targets.delta import State, base, tuned
from tests.fuzz.targets.weights import read as read_all
from tests.fuzz.targets.weights import use


def pickled(content: Any, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def contents() -> list[Any]:
    """Honest checkpoints, and what `weights_only` lets through although it is no weight that this library can use."""
    endless: dict[str, Any] = {}
    endless["state_dict"] = endless
    return [
        _without_float8(base()),
        {"state_dict": tuned(), "epoch": 3, "lr": 0.1},
        {"model": {"module." + name: tensor for name, tensor in _without_float8(base()).items()}},
        endless,
        {1: torch.ones(2), "w": torch.ones(30, 20)},
        {"w": torch.ones(1).expand(1 << 40)},
        {"w": torch.ones(1).expand(30, 20), "narrow": torch.ones(50, 2)[:, 0].bfloat16()},
        {"w": torch.empty(1 << 40, device="meta")},
        {"w": torch.eye(3).to_sparse(), "v": torch.eye(3).to_sparse_csr()},
        {"w": torch.ones(30, 20, dtype=torch.complex64)},
    ]


def _without_float8(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "small"}  # the old format has none


def seeds(zipped: bool) -> list[bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CSR is in beta
        return [pickled(content, zipped) for content in contents()]


def read(path: Path) -> Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_all(path)


ZIPPED = Target("pickle_zip", "x.pt", partial(seeds, True), mutate_zip, read, use)
LEGACY = Target("pickle_old", "x.pth", partial(seeds, False), mutate_pickle, read, use)
