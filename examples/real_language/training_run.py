"""One method on one task in a process of its own, so that its memory can be measured."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from examples.own_process import MemoryGrowth, measure
from examples.real_language.continuing import Continuing
from examples.real_language.methods import start
from examples.real_language.retrieval import Retrieval
from examples.real_language.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Continuing(), Retrieval())}


def in_a_process(task: str, method: str, rate: float, steps: int, part: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and score in a new process; `folder` gets what one would ship, the base lies beside it."""
    words = [task, method, str(rate), str(steps), part, str(seed), str(folder)]
    return measure("examples.real_language.training_run", *words)


def run(task: Task, method: str, rate: float, steps: int, part: Any, seed: int, folder: Path) -> dict[str, Any]:
    """Train for some steps, write what one would ship, and score."""
    torch.manual_seed(seed)
    base = folder.parent / "base"
    batches = task.batches(base, seed)
    model = task.load(base).train()
    weights = sum(weight.nbytes for weight in model.parameters())
    growth = MemoryGrowth()
    tuning = start(method, rate, task, model, batches)
    seconds = []
    for step in range(steps):
        begun = time.process_time()
        task.loss(tuning.model, batches[step % len(batches)]).backward()
        tuning.optimizer.step()
        tuning.optimizer.zero_grad()
        seconds.append(time.process_time() - begun)
    peak = (weights + growth.peak()) / 2**20
    folder.mkdir(parents=True, exist_ok=True)
    tuning.save(folder)
    shipped = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        **task.score(tuning.model, base, part),
        "shipped, MB": shipped / 1e6,
        "peak memory, MiB": peak,
        "step, CPU s": sorted(seconds)[len(seconds) // 2],
    }


if __name__ == "__main__":
    name, method, rate, steps, part, seed, folder = sys.argv[1:]
    print(json.dumps(run(TASKS[name], method, float(rate), int(steps), part, int(seed), Path(folder))))
