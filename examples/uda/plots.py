"""Figures of a report: accuracy against what a task stores (Figure 4), accuracy over iterations (App. Figure 2)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from examples.uda.report import RowResults


def draw_storage(title: str, rows: Sequence[RowResults], path: Path) -> None:
    """Mean accuracy at the end of training against DSP in millions, a point a complete row."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for row in rows:
        dsp, accuracy = row.dsp(), row.average("last")
        if dsp is not None and accuracy is not None:
            axes.errorbar(dsp, accuracy, yerr=row.spread("last"), fmt="o", capsize=3, label=row.label)
    axes.set(xlabel="downstream parameters, all tasks (millions)", ylabel="target accuracy (%)", title=title)
    axes.set_xscale("symlog", linthresh=1e-3)  # zero-shot stores nothing
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_curves(title: str, rows: Sequence[RowResults], path: Path) -> bool:
    """Target accuracy over iterations, a panel a task and a line a row; the first seed's.

    Returns whether there is a curve to draw: cells that were scored once, at their end, have none.
    """
    trained = [row for row in rows if any(len(result["curve"]) > 1 for result in row.results)]
    if not trained:
        path.unlink(missing_ok=True)
        return False
    tasks = list(rows[0].by_task)
    lines: dict[str, Line2D] = {}
    width = min(4, len(tasks))
    height = -(-len(tasks) // width)
    figure, grid = plt.subplots(height, width, figsize=(3 * width, 2.4 * height), squeeze=False, layout="constrained")
    for axes, task in zip(grid.flat, tasks, strict=False):
        axes.set_title(task, fontsize="small")
        for number, row in enumerate(trained):
            for result in row.by_task[task][:1]:
                x, y = zip(*((point["iteration"], point["accuracy"]) for point in result["curve"]), strict=True)
                (lines[row.label],) = axes.plot(x, y, color=f"C{number}")
    for axes in list(grid.flat)[len(tasks) :]:
        axes.set_visible(False)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(f"{title}: target accuracy (%) over iterations", fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
