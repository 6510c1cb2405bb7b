"""An adapter's folder: its configuration, and the settings inside its delta that training would go on with."""

import json
import random
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from rst import RSTConfig, RSTModel, SparseDelta, get_rst_model
from rst.live.adapter_folder import write_adapter
from rst.schedule import Linear
from tests.fuzz.json_mutation import dump, mutate_json, parse
from tests.fuzz.safetensors_mutation import mutate_safetensors, mutate_text
from tests.fuzz.target import Target
from tests.fuzz.targets.delta import saved


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def _delta(config: RSTConfig) -> SparseDelta:
    model = get_rst_model(_network(), config)
    with torch.no_grad():
        model.base_model[0].weight[::2] += 0.5
    return model.get_delta()


def _configs() -> list[RSTConfig]:
    return [
        RSTConfig(threshold=1e-6, modules_to_save=["1"]),
        RSTConfig(threshold=Linear(1e-6, 1e-5), total_steps=10, target_modules=["0"], base_storage="cpu"),
        RSTConfig(select="top", ratio=0.5, every=2, exclude_modules="1.*"),
    ]


def config_seeds() -> list[bytes]:
    with TemporaryDirectory() as folder:
        write_adapter(folder, _delta(_configs()[0]))
        return [(Path(folder) / "rst_config.json").read_bytes()]


def prepare(folder: Path) -> None:
    write_adapter(folder, _delta(_configs()[0]))


def read(path: Path) -> RSTModel:
    return RSTModel.from_pretrained(_network(), path.parent)


def trainable_seeds() -> list[bytes]:
    return [saved(_delta(config), "coo") for config in _configs()]


def mutate_settings(rng: random.Random, data: bytes) -> bytes:
    """Mostly the settings, which only going on with the training reads."""
    if rng.random() < 0.3:
        return mutate_safetensors(rng, data)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(data)
        try:
            delta = SparseDelta.load(path)
            settings = parse(json.dumps(dict(delta.config)))
            for _ in range(rng.choice([1, 1, 2])):
                settings = mutate_json(rng, settings)
            changed = json.loads(dump(settings))
            return saved(replace(delta, config=changed), "coo") if isinstance(changed, dict) else data
        except Exception:  # not for a file that is damaged already, nor for settings that cannot be written
            return mutate_safetensors(rng, data)


def go_on(delta: SparseDelta) -> None:
    model = RSTModel(_network())
    model.add_adapter("default", delta, is_trainable=True)
    model.get_delta()


CONFIG = Target("rst_config", "rst_config.json", config_seeds, mutate_text, read, prepare=prepare)
TRAINABLE = Target("going_on", "delta.safetensors", trainable_seeds, mutate_settings, SparseDelta.load, go_on)
