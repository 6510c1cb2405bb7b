"""A histogram of latencies in constant memory: buckets grow by a tenth, so a percentile is accurate to a tenth."""

import math
import threading

_SHORTEST, _LONGEST, _GROWTH = 1e-4, 1e3, 1.1


class LatencyHistogram:
    """Counts by duration. Any thread may add or read."""

    def __init__(self) -> None:
        """Start empty."""
        buckets = math.ceil(math.log(_LONGEST / _SHORTEST, _GROWTH)) + 1
        self._edges = [_SHORTEST * _GROWTH**index for index in range(buckets)]
        self._counts = [0] * buckets
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Count one duration; what is longer than the last edge goes into the last bucket."""
        index = math.ceil(math.log(max(seconds, _SHORTEST) / _SHORTEST, _GROWTH))
        with self._lock:
            self._counts[min(index, len(self._counts) - 1)] += 1

    def counts(self) -> list[tuple[float, int]]:
        """Upper edge in seconds and count of every bucket that is not empty."""
        with self._lock:
            return [(edge, count) for edge, count in zip(self._edges, self._counts, strict=True) if count]

    def percentiles(self, *percents: float) -> dict[float, float]:
        """Upper edges, in seconds, below which so many percent of the durations lie; empty if there are none."""
        counts = self.counts()
        total = sum(count for _, count in counts)
        return {percent: _edge_at(counts, percent / 100 * total) for percent in percents} if total else {}


def _edge_at(counts: list[tuple[float, int]], wanted: float) -> float:
    seen = 0
    for edge, count in counts:
        seen += count
        if seen >= wanted:
            return edge
    return counts[-1][0]
