"""Every method on a task: first the choice of its learning rate, then all seeds. Finished runs are skipped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.real_language.methods import METHODS
from examples.real_language.task import Task
from examples.real_language.training_run import in_a_process

SEARCH_STEPS = 20
STEPS = 60
SEEDS = 3


def compare(task: Task, outputs: Path, results: Path) -> None:
    """Train with each method. `outputs` gets the base and what each method would ship, of seed 0."""
    base = outputs / task.name / "base"
    if not (base / "model.safetensors").is_file():
        task.save_base(base)
    _record(results, f"{task.name} base", lambda: task.score(task.load(base), base, "test"))
    for method in METHODS:
        for rate in task.rates[method]:
            _train(task, method, rate, SEARCH_STEPS, "validation", 0, outputs, results)
    for seed in range(SEEDS):
        for method in METHODS:
            rate = chosen_rate(task, method, read(results))
            _train(task, method, rate, STEPS, "test", seed, outputs, results)


def chosen_rate(task: Task, method: str, done: Mapping[str, Mapping[str, Any]]) -> float:
    """The rate with which the validation chapters fare best after a short run."""
    return min(task.rates[method], key=lambda rate: done[_key(task, method, rate, "validation", 0)][task.metric])


def final_runs(task: Task, method: str, done: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The scored runs of a method, a seed each."""
    rate = chosen_rate(task, method, done)
    keys = [_key(task, method, rate, "test", seed) for seed in range(SEEDS)]
    return [done[key] for key in keys if key in done]


def read(results: Path) -> dict[str, dict[str, Any]]:
    """The outcome of every finished run by its key."""
    return json.loads(results.read_text()) if results.is_file() else {}


def _train(
    task: Task, method: str, rate: float, steps: int, part: str, seed: int, outputs: Path, results: Path
) -> None:
    folder = outputs / task.name / (f"{method}-{seed}" if part == "test" else f"{method}-search")
    key = _key(task, method, rate, part, seed)
    _record(results, key, lambda: in_a_process(task.name, method, rate, steps, part, seed, folder))


def _key(task: Task, method: str, rate: float, part: str, seed: int) -> str:
    return f"{task.name} {method} {rate:g} {part} {seed}"


def _record(results: Path, key: str, measure: Any) -> None:
    if key not in read(results):
        outcome = measure()
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps({**read(results), key: outcome}, indent=1) + "\n")
        print(f"{key}: {outcome}", flush=True)
