"""A histogram of residual magnitudes on a logarithmic axis, with the tau that they had to exceed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rst.delta.sparse_delta import SparseDelta
from rst.report.chart import LEFT, RIGHT, TOP, Bar, Chart, Tick, power_of_ten, round_steps

_WIDTH, _HEIGHT, _FLOOR = 960.0, 280.0, 240.0
_BINS = 40
_FEW_DECADES, _MOST_DECADE_LABELS = 4, 16
_NEAR = 3  # tau is drawn if within this many decades of the residuals


@dataclass(frozen=True)
class ResidualHistogram:
    """Counts of residuals by magnitude.

    Attributes:
        edges: base-10 logarithms of the bin edges, one more than counts. Empty without residuals.
        counts: number of residuals in each bin.
        zeros: number of entries whose residual is zero, because only their tuned value is stored.
        unknown: number of changed weights without a residual: tuned values or steps, without the base.
    """

    edges: Sequence[float]
    counts: Sequence[int]
    zeros: int
    unknown: int

    @property
    def bins(self) -> list[tuple[float, float, int]]:
        """Return each bin's edges and count."""
        return [(*edges, count) for edges, count in zip(pairwise(self.edges), self.counts, strict=True)]


def residual_histogram(delta: SparseDelta, tau: float | None) -> ResidualHistogram:
    """Count the residuals of the parameters with op "add"; the bins reach down to tau if it is near."""
    known = [change for change in delta.values() if change.op == "add"]
    unknown = delta.nnz - sum(change.nnz for change in known)
    ranges = []
    zeros = 0
    for change in known:
        magnitudes = change.values.cpu().double().abs().numpy()
        positive = magnitudes[magnitudes > 0]
        zeros += magnitudes.size - positive.size
        if positive.size:
            ranges.append((positive.min(), positive.max()))
    if not ranges:
        return ResidualHistogram([], [], zeros, unknown)
    edges = _edges(min(low for low, _ in ranges), max(high for _, high in ranges), tau)
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    for change in known:
        magnitudes = change.values.cpu().double().abs().numpy()
        counts += np.histogram(np.log10(magnitudes[magnitudes > 0]), edges)[0]
    return ResidualHistogram(edges.tolist(), counts.tolist(), zeros, unknown)


def histogram_chart(histogram: ResidualHistogram, tau: float | None) -> Chart:
    """Draw a histogram, which must have bins."""
    low, high = histogram.edges[0], histogram.edges[-1]
    steps = round_steps(max(histogram.counts))
    across = (_WIDTH - LEFT - RIGHT) / (high - low)
    up = (_FLOOR - TOP) / steps[-1]

    def place(exponent: float) -> float:
        return LEFT + (exponent - low) * across

    bars = [
        Bar(
            place(left) + 0.5,
            _FLOOR - count * up,
            place(right) - place(left) - 1,
            count * up,
            _title(left, right, count),
        )
        for left, right, count in histogram.bins
    ]
    rules = [Tick(place(math.log10(tau)), f"τ = {tau:g}")] if is_drawn(histogram, tau) and tau else []
    return Chart(
        title="Histogram of the residuals' magnitudes",
        description=_summary(histogram),
        x_label="|residual| (log)",
        y_label="changed weights",
        width=_WIDTH,
        height=_HEIGHT,
        bars=bars,
        x_ticks=[Tick(place(exponent), label) for exponent, label in _labels(low, high)],
        y_ticks=[Tick(_FLOOR - step * up, _short(step)) for step in steps],
        rules=rules,
    )


def is_drawn(histogram: ResidualHistogram, tau: float | None) -> bool:
    """Return whether tau lies on the axis."""
    return bool(histogram.edges and tau and histogram.edges[0] <= math.log10(tau) <= histogram.edges[-1])


def rows(histogram: ResidualHistogram) -> list[tuple[str, int]]:
    """Return the bins with residuals, as a table."""
    return [(_bin(left, right), count) for left, right, count in histogram.bins if count]


def _edges(smallest: float, largest: float, tau: float | None) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    low, high = math.floor(math.log10(smallest)), math.floor(math.log10(largest)) + 1
    if tau and 0 <= low - math.log10(tau) <= _NEAR:
        low = math.floor(math.log10(tau))
    if tau and 0 <= math.log10(tau) - high <= _NEAR:
        high = math.floor(math.log10(tau)) + 1
    a_decade = max(1, _BINS // (high - low))
    edges = np.linspace(low, high, (high - low) * a_decade + 1)
    # the logarithm used for the edges and numpy's may differ in the last digit
    edges[0], edges[-1] = edges[0] - 1e-9, edges[-1] + 1e-9
    return edges


def _labels(low: float, high: float) -> list[tuple[float, str]]:
    """Return the labelled exponents: powers of ten, thinned on a long axis, with their 2- and 5-fold on a short one."""
    decades = range(math.ceil(low), math.floor(high) + 1)
    factors = (1, 2, 5) if len(decades) <= _FEW_DECADES else (1,)
    exponents = [
        (decade + math.log10(factor), power_of_ten(decade) if factor == 1 else f"{factor}·{power_of_ten(decade)}")
        for decade in decades[:: -(-len(decades) // _MOST_DECADE_LABELS)]
        for factor in factors
    ]
    return [(exponent, label) for exponent, label in exponents if exponent <= high]


def _title(left: float, right: float, count: int) -> str:
    return f"{count:,} residuals of {_bin(left, right)}"


def _bin(left: float, right: float) -> str:
    return f"{10**left:.3g} to {10**right:.3g}"


def _summary(histogram: ResidualHistogram) -> str:
    left, right, most = max(histogram.bins, key=lambda found: found[2])
    return f"Most residuals, {most:,}, are of {_bin(left, right)}."


def _short(count: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g} {letter}"
    return f"{count:g}"
