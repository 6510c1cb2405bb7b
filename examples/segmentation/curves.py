"""Figures of a report: mIoU over iterations, and RST's schedule: tau and the share of weights that it keeps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

Result = Mapping[str, Any]


def draw_scores(title: str, rows: Mapping[str, Sequence[Result]], path: Path) -> None:
    """mIoU on the target over iterations, a line for each row that trains; the first seed's."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for label, results in rows.items():
        if results and len(results[0]["curve"]) > 1:
            curve = results[0]["curve"]
            axes.plot([p["iteration"] for p in curve], [p["miou"] for p in curve], marker=".", label=label)
    axes.set(xlabel="iteration", ylabel="mIoU on the target (%)", title=title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_schedules(title: str, rows: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Tau of the last projection, and the share of sparsely trained weights that differ from w0, over iterations."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(6, 5), sharex=True, layout="constrained")
    for label, results in rows.items():
        points = [p for p in results[0]["curve"] if p["threshold"] is not None] if results else []
        if points:
            x = [p["iteration"] for p in points]
            above.plot(x, [p["threshold"] for p in points], marker=".", label=label)
            below.plot(x, [100 * p["kept"] for p in points], marker=".", label=label)
    above.set(ylabel="tau", title=title)
    below.set(ylabel="weights kept (%)", xlabel="iteration")
    below.set_ylim(bottom=0)
    if above.get_legend_handles_labels()[0]:
        above.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)
