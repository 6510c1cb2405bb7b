"""Runs whose results are written to a JSON file at once: a restarted comparison skips them."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar


@dataclass(frozen=True)
class Run:
    """One training run; the fields are recorded beside its outcome."""

    @property
    def key(self) -> str:
        """Its name among the results."""
        raise NotImplementedError


R = TypeVar("R", bound=Run)
Records = dict[str, dict[str, Any]]


def carry_out(runs: Iterable[R], train: Callable[[R], dict[str, float | int]], results: Path) -> None:
    """Train what is not done yet. `runs` may read the results of the runs before."""
    for run in runs:
        done = read(results)
        if run.key not in done:
            outcome = {**asdict(run), **train(run)}
            results.parent.mkdir(parents=True, exist_ok=True)
            results.write_text(json.dumps({**done, run.key: outcome}, indent=1) + "\n")
            print(f"{run.key}: {outcome['test']:.1%} with {outcome['share']:.3%}", flush=True)


def read(results: Path) -> Records:
    """The outcome of every finished run by its key."""
    return json.loads(results.read_text()) if results.is_file() else {}
