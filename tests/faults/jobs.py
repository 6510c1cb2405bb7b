"""Everything that writes a file which counts, each with an older result that must not get lost."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rst import ResidualSparseTrainer, SparseDelta, export, merge, open_checkpoint
from rst.cli import main
from rst.errors import RSTError
from rst.interop.task_vector import to_task_vector
from rst.live.adapter_folder import write_adapter
from rst.sync import Publisher
from rst.sync.checkpoint_follower import follow_into

State = dict[str, Tensor]


@dataclass(frozen=True)
class Job:
    """What to do in a folder, and how to tell what came of it.

    Attributes:
        prepare: the inputs, and the older result if there is one.
        run: replaces the older result.
        result: what is there, as something to compare; None for nothing.
    """

    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    result: Callable[[Path], Any]


def weights(number: int) -> State:
    generator = torch.Generator().manual_seed(0)
    state = {"a.weight": torch.randn(40, 30, generator=generator), "a.bias": torch.randn(30, generator=generator)}
    state["a.weight"][number % 7] += number
    return state


def delta(number: int) -> SparseDelta:
    return export(weights(0), weights(number))


def contents(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).read_bytes() if (folder / name).exists() else None


def save(encoding: Any) -> Job:
    return Job(
        lambda folder: delta(1).save(folder / "x.safetensors", encoding),
        lambda folder: delta(2).save(folder / "x.safetensors", encoding),
        contents("x.safetensors"),
    )


def merging(suffix: str) -> Job:
    def prepare(folder: Path) -> None:
        save_file(weights(0), folder / "base.safetensors")
        torch.save(weights(0), folder / "base.pt")
        merge(folder / f"base{suffix}", delta(1), folder / f"merged{suffix}")

    def run(folder: Path) -> None:
        merge(folder / f"base{suffix}", delta(2), folder / f"merged{suffix}")

    return Job(prepare, run, contents(f"merged{suffix}"))


def command(*words: str, output: str) -> Job:
    def prepare(folder: Path) -> None:
        save_file(weights(0), folder / "base.safetensors")
        save_file(weights(2), folder / "tuned.safetensors")
        delta(2).save(folder / "delta.safetensors")
        delta(1).save(folder / output)

    def run(folder: Path) -> None:
        paths = [str(folder / word) if word.endswith(".safetensors") else word for word in words]
        if main([*paths, "-o", str(folder / output), "--force"] if words[0] != "convert" else [*paths, "--force"]):
            raise SystemExit(3)

    return Job(prepare, run, contents(output))


def _adapter(folder: Path) -> Any:
    try:
        return sorted(map(repr, SparseDelta.load(folder / "adapter").items())), SparseDelta.load(folder / "adapter").nnz
    except RSTError:
        return None


def _chain(folder: Path) -> None:
    live = weights(1)
    publisher = Publisher(live, folder / "chain")
    save_file(live, folder / "followed.safetensors")
    live["a.weight"].copy_(weights(2)["a.weight"])
    publisher.publish()


def _chain_and_shards(folder: Path) -> None:
    _chain(folder)
    model = folder / "model"
    model.mkdir()
    files = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(weights(1), 1)}
    for name, file in files.items():
        save_file({name: weights(1)[name]}, model / file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def _weights_of_shards(folder: Path) -> Any:
    return {name: tensor.tolist() for name, tensor in open_checkpoint(folder / "model").items()}


def _record(folder: Path, number: int) -> None:
    from rst.interop.transformers import _write_record

    model = nn.Linear(30, 40)
    model.load_state_dict({"weight": weights(number)["a.weight"], "bias": torch.zeros(40)})
    _write_record(folder, ResidualSparseTrainer(model))


def _record_there(folder: Path) -> Any:
    from rst.interop.transformers import _read_record

    return float(_read_record(folder)["trainer"]["base"]["weight"].sum())


def _shira(folder: Path, number: int) -> None:
    from rst.interop.shira import to_shira

    model = nn.Sequential()
    model.add_module("a", nn.Linear(30, 40))
    model.a.weight.data.copy_(weights(0)["a.weight"])
    to_shira(delta(number), folder / "shira", model)


def _shira_there(folder: Path) -> Any:
    if not (folder / "shira" / "adapter_config.json").exists():
        return None
    return [(folder / "shira" / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")]


JOBS = {
    "save": save("coo"),
    "save packed": save("packed"),
    "merge": merging(".safetensors"),
    "merge pickles": merging(".pt"),
    "export": command("export", "tuned.safetensors", "--base", "base.safetensors", output="x.safetensors"),
    "combine": command(
        "combine", "delta.safetensors", "delta.safetensors", "--weights", "0.5", "0.5", output="x.safetensors"
    ),
    "convert": command("convert", "delta.safetensors", "x.safetensors", output="x.safetensors"),
    "task vector": Job(
        lambda folder: to_task_vector(delta(1), folder / "x.safetensors"),
        lambda folder: to_task_vector(delta(2), folder / "x.safetensors"),
        contents("x.safetensors"),
    ),
    "adapter": Job(
        lambda folder: write_adapter(folder / "adapter", delta(1)),
        lambda folder: write_adapter(folder / "adapter", delta(2), "packed"),
        _adapter,
    ),
    "first adapter": Job(lambda _: None, lambda folder: write_adapter(folder / "adapter", delta(2)), _adapter),
    "follow": Job(
        _chain,
        lambda folder: follow_into(folder / "followed.safetensors", folder / "chain"),
        contents("followed.safetensors"),
    ),
    "follow shards": Job(
        _chain_and_shards, lambda folder: follow_into(folder / "model", folder / "chain"), _weights_of_shards
    ),
    "training checkpoint": Job(lambda folder: _record(folder, 1), lambda folder: _record(folder, 2), _record_there),
    "SHiRA": Job(lambda folder: _shira(folder, 1), lambda folder: _shira(folder, 2), _shira_there),
}
NEEDS = {"training checkpoint": "transformers", "SHiRA": "peft"}
