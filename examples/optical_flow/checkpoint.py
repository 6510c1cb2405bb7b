"""Stop and go on: everything a run needs to end, bit for bit on a CPU, as if it had not been stopped."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

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


class Checkpoint:
    """One file with the state of everything that changes during training.

    Which crops a step sees follows from seed and step, and the network draws no random numbers: neither needs state.
    """

    def __init__(self, path: Path, **parts: Any) -> None:
        """Know the file and the objects with a state; those that are None are left out."""
        self.path = path
        self._parts = {name: part for name, part in parts.items() if part is not None}

    def save(self, progress: Progress) -> None:
        """Write the file whole or not at all."""
        unfinished = self.path.with_suffix(".tmp")
        states = {name: part.state_dict() for name, part in self._parts.items()}
        torch.save({"progress": asdict(progress), **states}, unfinished)
        unfinished.replace(self.path)

    def load(self) -> Progress:
        """Put everything back as it was; a fresh start where there is no file."""
        if not self.path.exists():
            return Progress()
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        return Progress(**state["progress"])
