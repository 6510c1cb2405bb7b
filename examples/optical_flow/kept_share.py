"""The share r of weights that may differ from the start, falling over training from all of them (App. M)."""

from dataclasses import dataclass

from examples.optical_flow.settings import Settings
from rst import Linear


@dataclass(frozen=True)
class Geometric:
    """From `start` to `end` by the same factor every step, so that the run is not over when r becomes small."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """Return the value at `progress` in [0, 1]; both ends are exact."""
        return float(self.start ** (1.0 - progress) * self.end**progress)


def kept_share(settings: Settings) -> Linear | Geometric:
    """R over progress in [0, 1]: from 1 to `final_share`."""
    return (Linear if settings.curve == "linear" else Geometric)(1.0, settings.final_share)
