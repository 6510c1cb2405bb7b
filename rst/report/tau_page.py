"""The page of `rst tau`: what each tau keeps, costs and resets."""

import math

from rst.operations.tau_curve import TauCurve, TauPoint
from rst.report.chart import LEFT, RIGHT, TOP, Bar, Chart, Tick, percent
from rst.report.density_by_layer import bar_share
from rst.report.template import load_template

_WIDTH, _HEIGHT, _FLOOR = 960.0, 280.0, 240.0


def render_curve(base: str, tuned: str, curve: TauCurve) -> str:
    """Draw the curve as one HTML page that needs no network and runs no script."""
    return load_template("tau.html").render(base=base, tuned=tuned, curve=curve, chart=_chart(curve))


def _chart(curve: TauCurve) -> Chart:
    shares = [point.kept / max(curve.weights, 1) for point in curve.points]
    lowest = min(-1, math.floor(math.log10(min((share for share in shares if share), default=0.1))))
    slot = (_WIDTH - LEFT - RIGHT) / len(shares)
    bars = []
    for place, (point, share) in enumerate(zip(curve.points, shares, strict=True)):
        height = bar_share(share, lowest) * (_FLOOR - TOP)
        bars.append(Bar(LEFT + slot * (place + 0.15), _FLOOR - height, slot * 0.7, height, _title(point, share)))
    return Chart(
        title="Share of the weights that each tau keeps",
        description=f"From {percent(shares[0])} at tau = 0 to {percent(shares[-1])} at {curve.points[-1].tau:g}.",
        x_label="tau",
        y_label="kept share (log)",
        width=_WIDTH,
        height=_HEIGHT,
        bars=bars,
        x_ticks=[Tick(LEFT + slot * (place + 0.5), f"{point.tau:g}") for place, point in enumerate(curve.points)],
        y_ticks=[
            Tick(_FLOOR - bar_share(10.0**decade, lowest) * (_FLOOR - TOP), f"{10.0 ** (decade + 2):g} %")
            for decade in range(lowest, 1)
        ],
    )


def _title(point: TauPoint, share: float) -> str:
    return f"tau = {point.tau:g} keeps {point.kept:,} weights ({percent(share)})"
