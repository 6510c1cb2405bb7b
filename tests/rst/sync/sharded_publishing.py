"""What the tests of sharded publishing run in every process."""

from pathlib import Path

import torch
from torch import nn

from rst import RSTError
from rst.shards.blocks import local
from rst.sync import Published, Publisher
from tests.rst.distributed import sharded_models
from tests.rst.distributed.sharded_models import Net

STEPS, ANCHOR_EVERY = 3, 2


@torch.no_grad()
def move(model: nn.Module, step: int) -> None:
    """Change some weights, whoever has them; the largest last."""
    for weight in model.parameters():
        part = local(weight)
        part[part.abs() > 0.1 * step] *= 1.25
    for buffer in model.buffers():
        buffer += 1


def publish(model: nn.Module, store: Path, dtype: torch.dtype | None) -> list[Published]:
    publisher = Publisher(model, store, anchor_every=ANCHOR_EVERY, dtype=dtype)
    published = []
    for step in range(1, STEPS + 1):
        move(model, step)
        published.append(publisher.publish(step))
    move(model, 0)  # every weight
    resumed = Publisher(model, store, anchor_every=ANCHOR_EVERY, dtype=dtype)
    published.append(resumed.publish())
    return published


def publish_sharded(folder: Path, shardings: list[tuple[str, torch.dtype | None]]) -> list[list[Published]]:
    outcomes = []
    for number, (sharding, dtype) in enumerate(shardings):
        model = Net()
        getattr(sharded_models, sharding)(model)
        outcomes.append(publish(model, folder / str(number), dtype))
    return outcomes


def refusals(folder: Path) -> dict[str, str]:
    """What each process is told where one of them fails, and whether the publisher still works then."""
    import torch.distributed as dist

    told, model = {}, Net()
    sharded_models.fsdp(model)
    publisher, other = Publisher(model, folder / "chain"), Publisher(model, folder / "chain")

    def attempt(name: str, work: object) -> None:
        try:
            told[name] = f"none: {work()}"  # type: ignore[operator]
        except (RSTError, OSError) as error:
            told[name] = f"{type(error).__name__}: {getattr(error, 'parameter', None)}"

    with torch.no_grad():
        part = local(model.up.weight)
        kept = part.clone()
        if dist.get_rank() == 1:
            part[0, 0] = float("nan")
    attempt("nan", publisher.publish)
    with torch.no_grad():
        part.copy_(kept)
    move(model, 1)
    told["published"] = str(publisher.publish().step)
    attempt("conflict", other.publish)
    if dist.get_rank() == 0:
        (folder / "file").write_text("in the way")
    attempt("file", lambda: Publisher(model, folder / "file"))
    return told
