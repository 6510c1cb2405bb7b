"""The share r of weights that may differ from the start, falling over training from all of them (App. M)."""

from examples.optical_flow.settings import Settings
from rst import Geometric, Linear


def kept_share(settings: Settings) -> Linear | Geometric:
    """R over progress in [0, 1]: from 1 to `final_share`."""
    return (Linear if settings.curve == "linear" else Geometric)(1.0, settings.final_share)
