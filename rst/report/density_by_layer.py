"""The changed share of every tensor, in the order of the names, on a logarithmic axis."""

import math
from collections.abc import Sequence

from rst.report.chart import LEFT, RIGHT, TOP, Bar, Chart, Tick, percent
from rst.report.tensors import TensorRecord

_WIDTH, _HEIGHT, _FLOOR = 960.0, 280.0, 240.0
_WIDEST = 28.0
_STUB = 2.0  # bar height of a tensor without changes


def layer_chart(tensors: Sequence[TensorRecord]) -> Chart:
    """Draw one bar per tensor."""
    lowest = lowest_decade(tensors)
    slot = (_WIDTH - LEFT - RIGHT) / max(len(tensors), 1)
    width = min(slot * (0.7 if slot > 3 else 0.9), _WIDEST)
    bars = []
    for place, tensor in enumerate(tensors):
        height = max(bar_share(tensor.density, lowest) * (_FLOOR - TOP), _STUB)
        x = LEFT + slot * (place + 0.5) - width / 2
        title = f"{tensor.name}: {describe(tensor)}"
        bars.append(Bar(x, _FLOOR - height, width, height, title, tensor.kind))
    return Chart(
        title="Changed share of every tensor",
        description=_summary(tensors),
        x_label=f"{len(tensors):,} tensor{'s' * (len(tensors) != 1)}, in the order of the table",
        y_label="changed share (log)",
        width=_WIDTH,
        height=_HEIGHT,
        bars=bars,
        x_ticks=[],
        y_ticks=[Tick(_FLOOR - (1 - decade / lowest) * (_FLOOR - TOP), _label(decade)) for decade in _decades(lowest)],
    )


def lowest_decade(tensors: Sequence[TensorRecord]) -> int:
    """Return the power of ten below the smallest density, at most -1."""
    densities = [tensor.density for tensor in tensors if tensor.density > 0]
    return min(-1, math.ceil(math.log10(min(densities, default=1.0))) - 1)


def bar_share(density: float, lowest: int) -> float:
    """Return the share of the axis from 10^lowest to 1 that a density takes, in [0, 1]."""
    return 1 - math.log10(density) / lowest if density > 0 else 0.0


def describe(tensor: TensorRecord) -> str:
    """Describe a tensor's change in words."""
    if tensor.kind == "sparse":
        return f"{tensor.dsp:,} of {tensor.of:,} weights changed ({percent(tensor.density)})"
    if tensor.kind == "unchanged":
        return f"none of {tensor.of:,} weights changed"
    return f"{'a buffer of ' if tensor.kind == 'buffer' else ''}{tensor.of:,} numbers, stored whole"


def _decades(lowest: int) -> range:
    return range(lowest, 1, max(1, -lowest // 6))


def _label(decade: int) -> str:
    return f"{10.0 ** (decade + 2):g} %"


def _summary(tensors: Sequence[TensorRecord]) -> str:
    sparse = sorted((tensor for tensor in tensors if tensor.kind == "sparse"), key=lambda tensor: tensor.density)
    if not sparse:
        return "No parameter has a sparse change."
    low, high = sparse[0], sparse[-1]
    if len(sparse) == 1:
        return f"The one parameter with a sparse change is {low.name}, at {percent(low.density)}."
    return f"From {percent(low.density)} in {low.name} to {percent(high.density)} in {high.name}."
