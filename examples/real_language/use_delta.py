"""Three uses of one delta: on a live model, merged into a transformers folder, and sent to a follower."""

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from examples.real_language.methods import DELTA
from examples.real_language.task import Task
from rst import SparseDelta, export, merge
from rst.sync import Follower, Publisher


def use(task: Task, outputs: Path) -> Iterator[str]:
    """What each way gives; the delta is that of seed 0.

    Raises:
        SystemExit: nothing has been trained yet.
    """
    base, path = outputs / task.name / "base", outputs / task.name / "rst-0" / DELTA
    if not path.is_file():
        raise SystemExit(f"{path} is missing; run `python -m examples.real_language compare` first")
    delta = SparseDelta.load(path)
    yield f"{path}: {path.stat().st_size / 1e6:.2f} MB, {delta.nnz:,} weights"

    live = task.load(base)
    yield _line("the base", task, live, base)
    with delta.prepare(live):
        yield _line("with the delta on", task, live, base)
    yield f"taken off again: {_difference(live, task.load(base))}"

    folder = merge(base, path, outputs / task.name / "merged")
    merged = task.load(folder)
    yield _line(f"merged into {folder.name}/, read by transformers", task, merged, base)

    trained, sampling = task.load(base), task.load(base)
    chain = str(outputs / task.name / "chain")
    publisher = Publisher(trained, chain)
    follower = Follower(sampling, chain)
    delta.apply(trained)
    published = publisher.publish()
    follower.update()
    yield f"sent to a follower in {published.delta_bytes / 1e6:.2f} MB: {_difference(sampling, merged)}"


def _line(name: str, task: Task, model: nn.Module, base: Path) -> str:
    return f"{name}: {task.metric} {task.score(model, base, 'test')[task.metric]:.4f}"


def _difference(one: nn.Module, other: nn.Module) -> str:
    changed = export(one, other).nnz
    return "the same bits" if changed == 0 else f"{changed:,} weights differ"
