"""A bar chart as numbers: the positions of bars, ticks and marks in an SVG, which the template draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

LEFT, RIGHT, TOP, BOTTOM = 66.0, 24.0, 26.0, 40.0
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Bar:
    """A rectangle with its tooltip text; `kind` is its class in the style sheet."""

    x: float
    y: float
    width: float
    height: float
    title: str
    kind: str = "sparse"


@dataclass(frozen=True)
class Tick:
    """A position on an axis, in SVG units, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A chart and its texts.

    Attributes:
        title: what it shows, also for screen readers.
        description: the main result, in a sentence.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical axis.
        width: width of the SVG, in its units.
        height: height of the SVG.
        bars: in any order.
        x_ticks: ticks of the horizontal axis.
        y_ticks: ticks of the vertical axis.
        rules: labelled vertical lines over the bars.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    width: float
    height: float
    bars: Sequence[Bar]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    rules: Sequence[Tick] = field(default=())

    @property
    def left(self) -> float:
        """The left edge of the plot."""
        return LEFT

    @property
    def right(self) -> float:
        """The right edge of the plot."""
        return self.width - RIGHT

    @property
    def top(self) -> float:
        """The upper edge of the plot."""
        return TOP

    @property
    def bottom(self) -> float:
        """The lower edge of the plot, on which the bars stand."""
        return self.height - BOTTOM


def power_of_ten(exponent: int) -> str:
    """Format a power of ten.

    >>> power_of_ten(-6)
    '10⁻⁶'
    """
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def percent(share: float) -> str:
    """Format a share in percent with three digits.

    >>> percent(0.00123456)
    '0.123 %'
    """
    return f"{share * 100:.3g} %" if share >= 1e-6 or not share else f"{share * 100:.1e} %"


def round_steps(largest: float, count: int = 4) -> list[float]:
    """Return numbers from 0 to at least `largest` in equal round steps (1, 2, 2.5 or 5 times a power of ten).

    >>> round_steps(0.7)
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    if not largest > 0:
        return [0.0, 1.0]
    magnitude = 10.0 ** math.floor(math.log10(largest / count))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude * count >= largest * 0.9999)
    return [round(i * step, 12) if step > 1e-9 else i * step for i in range(math.ceil(largest / step * 0.9999) + 1)]
