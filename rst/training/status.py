"""The state of a training run in numbers: for logs, and to check that a share is reached."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingStatus:
    """A snapshot of a `ResidualSparseTrainer`.

    Attributes:
        steps: optimiser steps seen.
        kept: tracked weights that differ from w0 now, in all processes.
        weights: tracked weights.
        target: the share that the last selection was to keep, which falls to `ratio`; None without a share.
        boundary: the largest change that the last selection reset; None before it, or without one.
    """

    steps: int
    kept: int
    weights: int
    target: float | None
    boundary: float | None

    @property
    def share(self) -> float:
        """Return the share of the tracked weights that differ from w0, in [0, 1]."""
        return self.kept / self.weights if self.weights else 0.0

    def logged(self) -> dict[str, float]:
        """Return what the callbacks log: `rst_share`, and `rst_target` and `rst_boundary` where known."""
        known = {"rst_share": self.share, "rst_target": self.target, "rst_boundary": self.boundary}
        return {name: value for name, value in known.items() if value is not None}
