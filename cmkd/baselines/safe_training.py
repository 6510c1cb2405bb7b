"""SSRT's safe training: self-training grows slowly, and is rolled back when predictions lose their diversity."""

import math
from itertools import pairwise
from typing import Any

from torch import Tensor, nn


class SafeTraining:
    """Strength of self-training over the iterations, with snapshots for a roll-back (SSRT, Sec. 3.4).

    Every `interval` iterations, the diversities of the interval (number of classes predicted in each batch) are checked
    on `scales + 1` scales: the interval is cut into 1, 2, 4 ... parts, and the check fails if the mean of a part is
    more than 1 below that of the part before it, the last part of the previous interval included. If it fails, the
    models return to the snapshot from the start of the interval and the strength starts again from 0; a second failure
    within one growth period doubles the period. The released code stores references to the weights as its snapshot, so
    it restores nothing; here the snapshot is a copy, as the paper intends. The optimiser's state is not restored, as in
    the released code's default.
    """

    def __init__(self, interval: int = 1000, scales: int = 4) -> None:
        """Set the interval between snapshots and the number of scales besides the whole interval.

        Raises:
            ValueError: if `interval` is not positive.
        """
        if interval <= 0:
            raise ValueError(f"interval must be positive, got {interval}")
        self.interval = interval
        self.scales = scales
        self._growth_period = interval
        self._growth_start = 0
        self._last_restore = 0
        self._must_restore = False
        self._diversities: list[int] = []
        self._previous: list[int] = []
        self._snapshot: list[dict[str, Tensor]] = []

    def begin(self, iteration: int, *models: nn.Module) -> float:
        """Restore the models if necessary, take a snapshot if one is due, and return the strength in [0, 1]."""
        if self._must_restore:
            for model, state in zip(models, self._snapshot, strict=True):
                model.load_state_dict(state)
            self._last_restore = iteration
            self._must_restore = False
        if iteration % self.interval == 0:
            self._snapshot = [_copy_of_state(model) for model in models]
            self._diversities = []
        return self._strength(iteration)

    def record(self, iteration: int, diversity: int) -> None:
        """Record the number of classes predicted for the iteration's target batch; check at the end of an interval."""
        self._diversities.append(diversity)
        if (iteration + 1) % self.interval:
            return
        if self._diversity_fell() and self._strength(iteration) > 0.1:
            self._must_restore = True
            if iteration - self._last_restore <= self._growth_period:
                self._growth_period *= 2
            self._growth_start = iteration
        else:
            self._previous = self._diversities

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, the snapshot included."""
        state = {name: value for name, value in vars(self).items() if name not in ("interval", "scales")}
        return {name: list(value) if isinstance(value, list) else value for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)

    def _strength(self, iteration: int) -> float:
        progress = (iteration - self._growth_start) / self._growth_period
        return math.sin(min(progress, 1.0) * math.pi / 2)

    def _diversity_fell(self) -> bool:
        for scale in range(self.scales + 1):
            parts = 2**scale
            if parts > len(self._diversities):
                return False
            means = _means_of_parts(self._diversities, parts)
            if len(self._previous) >= parts:
                means.insert(0, _means_of_parts(self._previous, parts)[-1])
            if any(after < before - 1 for before, after in pairwise(means)):
                return True
        return False


def _means_of_parts(values: list[int], parts: int) -> list[float]:
    cuts = [round(part * len(values) / parts) for part in range(parts + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in pairwise(cuts)]


def _copy_of_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
