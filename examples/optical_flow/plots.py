"""Figures of a report: the kept share over training, planned and counted; loss and end-point error over training."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

from examples.optical_flow.kept_share import kept_share
from examples.optical_flow.report import Row


def draw_kept_share(rows: Sequence[Row], path: Path) -> None:
    """R over the steps by its schedule (lines), and the share that differs from the start, counted (points)."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, row in enumerate(row for row in rows if row.settings.method == "rst"):
        schedule, steps = kept_share(row.settings), row.settings.steps
        places = [i / 200 for i in range(201)]
        label = f"{row.label}, {row.settings.curve}"
        axes.plot([p * steps for p in places], [100 * schedule(p) for p in places], color=f"C{number}", label=label)
        if row.result:
            points = row.result["curve"][1:]
            counted = [100 * point["kept"] for point in points]
            axes.plot(
                [point["step"] for point in points], counted, "o", color=f"C{number}", label=f"{row.label}, counted"
            )
    axes.set(xlabel="step", ylabel="kept share r (%)", yscale="log", title="Weights that may differ from the start")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curves(title: str, rows: Sequence[Row], path: Path) -> None:
    """Training loss, mean since the point before, and end-point error of the measured pairs."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    lines = {}
    for number, row in enumerate(row for row in rows if row.result):
        assert row.result is not None
        curve = row.result["curve"]
        for axes, key in zip(panels, ("loss", "epe"), strict=True):
            points = [(point["step"], point[key]) for point in curve if point[key] is not None]
            (lines[row.label],) = axes.plot(*zip(*points, strict=True), color=f"C{number}")
    panels[0].set(xlabel="step", ylabel="sequence loss")
    panels[1].set(xlabel="step", ylabel="end-point error (pixels)")
    if lines:
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)
