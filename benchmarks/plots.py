"""The figures of the tables: bars of times on a logarithmic axis, and curves over the size of a model."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from benchmarks.record import Row

_OURS, _OTHERS = "#c44e52", "#9aa5b1"


def bars(rows: Sequence[Row], column: str, title: str, path: Path) -> None:
    """One bar a row, ours in another colour, the number at its end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names, values = [row.name for row in rows], [float(row.numbers[column] or 0) for row in rows]
    colours = [_OURS if name.startswith("rst") else _OTHERS for name in names]
    drawn = axes.barh(names, values, color=colours)
    axes.bar_label(drawn, [f"{value:,g}" for value in values], padding=4)
    axes.set(xscale="log", xlabel=column, xlim=(min(values) / 2, max(values) * 4))
    figure.suptitle(title, fontsize="medium")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def curves(
    rows: Sequence[Row], across: str, groups: Sequence[tuple[str, Sequence[str]]], title: str, path: Path
) -> None:
    """One picture a group (its axis label and its columns), each column a line over `across`, a log axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(groups), 3.8), layout="constrained")
    figure.suptitle(fill(title, 60 * len(groups)), fontsize="medium")  # no picture is wide enough for every title
    places = [float(row.numbers[across] or 0) for row in rows]
    for place, (label, columns) in enumerate(groups, start=1):
        axes = figure.add_subplot(1, len(groups), place)
        for column in columns:
            axes.plot(places, [row.numbers[column] for row in rows], "o-", label=column)
        axes.set(xscale="log", xlabel=across, ylabel=label, ylim=(0, None))
        axes.set_xticks(places, labels=[f"{at:g}" for at in places])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
