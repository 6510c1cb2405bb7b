"""How far a training is, in numbers: for logs, and to see that a share is met."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingStatus:
    """A look at a `ResidualSparseTrainer`.

    Attributes:
        steps: optimiser steps seen.
        kept: tracked weights that differ from w0 now, in all processes.
        weights: tracked weights.
        target: the share that the last selection was to keep, which falls to `ratio`; None where nothing asks for one.
        boundary: what the last selection put back changed by no more than this; None before it, or without one.
    """

    steps: int
    kept: int
    weights: int
    target: float | None
    boundary: float | None

    @property
    def share(self) -> float:
        """Share of the tracked weights that differ from w0, in [0, 1]."""
        return self.kept / self.weights if self.weights else 0.0

    def logged(self) -> dict[str, float]:
        """What the callbacks put into a run's logs: `rst_share`, and `rst_target` and `rst_boundary` where known."""
        known = {"rst_share": self.share, "rst_target": self.target, "rst_boundary": self.boundary}
        return {name: value for name, value in known.items() if value is not None}
