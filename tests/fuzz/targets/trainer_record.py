"""A trainer's record in a checkpoint, as `rst export` and a resumed training read it."""

import io
import random
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rst import ResidualSparseTrainer, RSTConfig, SparseDelta, export, open_checkpoint
from tests.fuzz.pickle_mutation import mutate_zip
from tests.fuzz.target import Target
from tests.fuzz.targets.pickles import pickled

_STRANGE: tuple[Any, ...] = (
    None, True, -1, 1 << 70, 1.5, float("nan"), float("inf"), "", "x", "2.5", "\0", b"w", [], {}, [1], {"x": 1}, {1: 2},
    (), [[]], torch.ones(2), torch.ones(1).expand(1 << 40), torch.empty(3, device="meta"), torch.zeros(3).cfloat(),
)  # fmt: skip


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def _trainer() -> ResidualSparseTrainer:
    trainer = ResidualSparseTrainer(_network(), RSTConfig(threshold=1e-6, modules_to_save=["2"]))
    with torch.no_grad():
        trainer.model[0].weight[::2] += 0.5
    return trainer


def _checkpoint() -> dict[str, Any]:
    trainer = _trainer()
    return {"state_dict": trainer.model.state_dict(), "rst": trainer.state_dict()}


def _record() -> dict[str, Any]:
    return {"weights": "0" * 32, "trainer": _trainer().state_dict()}


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Put something strange into the record, or change the pickle."""
    if rng.random() < 0.2:
        return mutate_zip(rng, data)
    try:
        content = torch.load(io.BytesIO(data), weights_only=True)
        places = [place for place in _places(content) if not isinstance(place[0], Tensor)]
        container, key = rng.choice(places)
    except Exception:  # a file that is damaged already
        return mutate_zip(rng, data)
    kind = rng.randrange(4)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice(["x", "", 3, None])] = container.pop(key)
    else:
        container[key] = rng.choice(_STRANGE)
    return pickled(content, True)


def _places(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def read(path: Path) -> SparseDelta:
    """As `rst export model.ckpt` does."""
    open_checkpoint(path)
    return export(None, path)


def use(delta: SparseDelta) -> None:
    delta.summary()


def read_record(path: Path) -> dict[str, Any]:
    """As a resumed Trainer does."""
    found: dict[str, Any] = import_module("rst.interop.transformers")._read_record(path.parent)
    return found


def _import_first(_: Path) -> None:
    import_module("rst.interop.transformers")  # takes long


def resume(record: dict[str, Any]) -> None:
    trainer = _trainer()
    before = {name: tensor.clone() for name, tensor in trainer.base.items()}
    try:
        trainer.load_state_dict(record["trainer"])
    except BaseException:
        assert all(torch.equal(before[name], tensor) for name, tensor in trainer.base.items()), "half of it was loaded"
        raise


IN_A_CHECKPOINT = Target("trainer_record", "x.ckpt", lambda: [pickled(_checkpoint(), True)], mutate, read, use)
OF_TRANSFORMERS = Target(
    "resumed_record", "rst_trainer.pt", lambda: [pickled(_record(), True)], mutate, read_record, resume, _import_first
)
