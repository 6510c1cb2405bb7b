"""The progress of a run, and its curve."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        iteration: iterations done.
        curve: a point an evaluation: iteration, scores, mean losses since the last one.
        seconds: spent so far, interruptions not counted.
    """

    iteration: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Begin to sum losses."""
        self._losses: dict[str, list[Tensor]] = {}

    def add_losses(self, terms: dict[str, Tensor]) -> None:
        """Remember the terms of one phase."""
        for name, value in terms.items():
            self._losses.setdefault(name, []).append(value.detach())

    def add_scores(self, iteration: int, scores: "DataclassInstance", *, seconds: float) -> None:
        """Add a point to the curve."""
        losses = {name: torch.stack(values).mean().item() for name, values in self._losses.items()}
        self._losses.clear()
        self.curve.append({"iteration": iteration, **asdict(scores), "losses": losses})
        self.iteration, self.seconds = iteration, seconds
