"""Runs that are killed and started again, which must end as if they had not been."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.experiment.cell import ExperimentCell


class Killed(Exception):
    """Stands for the kill."""


def kill_at(iteration: int) -> Callable[[int], None]:
    """An `advance` that kills the run after so many iterations."""

    def advance(done: int) -> None:
        if done == iteration:
            raise Killed

    return advance


def run_killed(run: Callable[..., Any], *kills: int) -> list[int]:
    """Run to the end, killed before at each of these iterations; return the iterations of the last start."""
    for iteration in kills:
        with pytest.raises(Killed):
            run(advance=kill_at(iteration))
    seen: list[int] = []
    run(advance=seen.append)
    return seen


def without_time(path: Path) -> dict[str, Any]:
    """A stored result, but for how long it took."""
    result: dict[str, Any] = json.loads(path.read_text())
    del result["hours"]
    return result


def assert_same_end(killed: ExperimentCell[Any, Any], straight: ExperimentCell[Any, Any]) -> None:
    """The same result, the same bytes of weights, and no checkpoint left."""
    assert without_time(killed.path) == without_time(straight.path)
    files = [cell.path.with_suffix(".safetensors").read_bytes() for cell in (killed, straight)]
    assert files[0] == files[1]
    assert not killed.checkpoint_path.exists()
