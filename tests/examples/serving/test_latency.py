"""The histogram against exact percentiles."""

import random

import pytest

from examples.serving.latency import LatencyHistogram


def test_percentiles_are_right_to_a_tenth() -> None:
    chooser = random.Random(0)
    durations = sorted(chooser.lognormvariate(-5, 1.5) for _ in range(5000))
    histogram = LatencyHistogram()
    for duration in durations:
        histogram.add(duration)
    for percent, found in histogram.percentiles(50, 90, 99).items():
        exact = durations[int(percent / 100 * len(durations)) - 1]
        assert exact <= found * (1 + 1e-9) <= exact * 1.1001 or found == pytest.approx(1e-4)
    assert sum(count for _, count in histogram.counts()) == len(durations)


def test_extremes_and_nothing() -> None:
    histogram = LatencyHistogram()
    assert histogram.percentiles(50) == {}
    histogram.add(0.0)
    histogram.add(1e9)
    assert [count for _, count in histogram.counts()] == [1, 1]
    assert histogram.percentiles(50, 100) == {50: pytest.approx(1e-4), 100: pytest.approx(1e3, rel=0.1)}
