"""A folder that PEFT wrote: what its configuration may make PEFT do, and its weights."""

import warnings
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

from rst import SparseDelta
from rst.interop.peft_adapters import from_peft
from tests.fuzz.safetensors_mutation import mutate_safetensors, mutate_text
from tests.fuzz.target import Target

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def _base() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@cache
def _folder() -> Path:
    from peft import LoraConfig, get_peft_model

    folder = Path(mkdtemp(prefix="rst-fuzz-peft-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(_base(), LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"])).save_pretrained(folder)
    return folder


def prepare(folder: Path) -> None:
    for name in (_CONFIG, _WEIGHTS):
        (folder / name).write_bytes((_folder() / name).read_bytes())


def read(path: Path) -> SparseDelta:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_peft(path.parent, _base())


def use(delta: SparseDelta) -> None:
    delta.summary()


CONFIG = Target("peft_config", _CONFIG, lambda: [(_folder() / _CONFIG).read_bytes()], mutate_text, read, use, prepare)
WEIGHTS = Target(
    "peft_weights", _WEIGHTS, lambda: [(_folder() / _WEIGHTS).read_bytes()], mutate_safetensors, read, use, prepare
)
