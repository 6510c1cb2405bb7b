"""Accuracy against what a task stores, in parameters (Figure 4) and in bytes on disk."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

from examples.peft_comparison.report import Row

MARKERS = {"LoRA": "s", "AdaLoRA": "D", "SHiRA": "^", "RST": "o"}


def draw(title: str, rows: Sequence[Row], path: Path) -> None:
    """A panel a unit, a point a row with its spread over seeds; RST's thresholds joined by a line.

    Where tasks or seeds are missing, the points are of the tasks that every row has.
    """
    tasks = [task for task in rows[0].accuracy if all(row.accuracy.get(task) for row in rows)]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axes, unit in zip(panels, ("parameters", "bytes"), strict=True):
        trained = [row for row in rows if row.parameters]
        colours = mpl.colormaps["tab20"].colors
        for number, row in enumerate(trained):
            accuracy, spread = _point(row, tasks)
            axes.errorbar(
                getattr(row, unit),
                accuracy,
                yerr=spread,
                fmt=MARKERS.get(row.label.split()[0], "*"),
                color=colours[number],
                markeredgecolor="black",
                capsize=3,
                label=row.label,
            )
        sparse = [row for row in trained if row.label.startswith("RST")]
        axes.plot(
            [getattr(row, unit) for row in sparse], [_point(row, tasks)[0] for row in sparse], color="grey", lw=0.8
        )
        axes.axhline(_point(rows[0], tasks)[0], color="grey", linestyle=":", label=rows[0].label)
        axes.set(xscale="log", xlabel=f"{unit} that a task stores")
    panels[0].set_ylabel(f"target accuracy (%), {', '.join(tasks)}")
    panels[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _point(row: Row, tasks: Sequence[str]) -> tuple[float, float | None]:
    """Mean over the tasks, and the standard deviation over seeds of that mean."""
    seeds = [mean(values) for values in zip(*(row.accuracy[task] for task in tasks), strict=False)]
    return mean(seeds), stdev(seeds) if len(seeds) > 1 else None
