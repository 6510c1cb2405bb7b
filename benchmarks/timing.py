"""Comparable timings: all contenders round after round, so that a busy moment affects them all.

Each round has an order of its own, so that none always finds the caches as one other left them.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender over all rounds."""

    median: float
    best: float
    rounds: int


def race(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Run every contender once to warm up, then `rounds` times in random order."""
    order = random.Random(0)
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in order.sample([*contenders], len(contenders)):
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(taken), min(taken), rounds) for name, taken in seconds.items()}
