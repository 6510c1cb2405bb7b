"""The progress of a run, and its curve."""

from dataclasses import asdict, dataclass, field
from typing import Any

from examples.optical_flow.flow_metrics import FlowScores


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: steps done.
        curve: a point an evaluation: step, scores, mean loss since the last one, share of weights that differ from the
            start (RST only).
        seconds: spent so far, interruptions not counted.
        losses: of the steps since the last point.
    """

    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def add_point(self, step: int, scores: FlowScores, *, kept: float | None, seconds: float) -> None:
        """Add a point to the curve."""
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        self.losses.clear()
        self.curve.append({"step": step, **asdict(scores), "loss": loss, "kept": kept})
        self.step, self.seconds = step, seconds
