"""The learning rate of each tuning, chosen without a target label."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.peft_comparison.plan import Plan
from examples.peft_comparison.tuning import Tuning

VALIDATOR = "im"
"""Mutual information of image and prediction on the target: certain predictions of all classes (`cmkd.validators`)."""


@dataclass(frozen=True)
class Choice:
    """A tuning's learning rate.

    Attributes:
        rate: the one with the highest score.
        scores: the validator's score by rate; None where the run diverged.
    """

    rate: float
    scores: Mapping[float, float | None]


def choose(plan: Plan, tuning: Tuning, output: Path) -> Choice | None:
    """Choose by the runs of the search; None before all of them are done, or where all diverged."""
    results = {rate: cell.result() for rate, cell in plan.search(tuning, output).items()}
    if None in results.values():
        return None
    scores = {rate: score(result) for rate, result in results.items() if result is not None}
    finished = {rate: value for rate, value in scores.items() if value is not None}
    return Choice(max(finished, key=finished.__getitem__), scores) if finished else None


def score(result: Mapping[str, Any]) -> float | None:
    """The validator's score at the end of a run, None if it diverged. Looks at nothing that knows a target label."""
    if result["status"] == "diverged":
        return None
    value: float = result["curve"][-1]["validators"][VALIDATOR]
    return value
