"""The tables of the measurements, and a figure of quality against shipped size."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.real_language.comparison import SEARCH_STEPS, STEPS, chosen_rate, final_runs
from examples.real_language.methods import METHODS
from examples.real_language.task import Task

Records = Mapping[str, Mapping[str, Any]]
COLOURS = {"full": "grey", "lora": "#4c72b0", "rst": "#c44e52"}


def write_report(tasks: list[Task], records: Records, folder: Path) -> list[Path]:
    """Write `language.md` and `language.png` of all tasks that have been run. Returns their paths."""
    tasks = [task for task in tasks if final_runs_of_all(task, records)]
    table, figure = folder / "language.md", folder / "language.png"
    table.write_text("\n\n".join("\n".join(_lines(task, records)) for task in tasks) + "\n")
    _draw(tasks, records).savefig(figure, dpi=120)
    return [table, figure]


def final_runs_of_all(task: Task, records: Records) -> bool:
    """Has each method been run with at least one seed?"""
    try:
        return all(final_runs(task, method, records) for method in METHODS)
    except KeyError:
        return False


def _lines(task: Task, records: Records) -> Iterator[str]:
    base = records[f"{task.name} base"]
    columns = [*base, "shipped, MB", "peak memory, MiB", "step, CPU s"]
    yield f"| {task.name} | learning rate | " + " | ".join(columns) + " |"
    yield "|---|---:|" + "---:|" * len(columns)
    yield "| the base | | " + " | ".join(f"{base[name]:.3g}" if name in base else "" for name in columns) + " |"
    for method, title in METHODS.items():
        runs = final_runs(task, method, records)
        cells = [_cell([run[name] for run in runs], spread=name in base) for name in columns]
        yield f"| {title} | {chosen_rate(task, method, records):g} | " + " | ".join(cells) + " |"
    yield ""
    seeds = len(final_runs(task, "rst", records))
    yield (
        f"{STEPS} steps, {seeds} seeds, mean ± standard deviation; the rates are those that fared best on the "
        f"validation chapters after {SEARCH_STEPS} steps. Lower `{task.metric}` is better."
    )


def _cell(values: list[float], *, spread: bool) -> str:
    mean = f"{statistics.mean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if spread and len(values) > 1 else mean


def _draw(tasks: list[Task], records: Records) -> Figure:
    figure = Figure(figsize=(5.5 * len(tasks), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        axes.axhline(records[f"{task.name} base"][task.metric], color="black", linewidth=1, linestyle=":", label="base")
        for method, title in METHODS.items():
            runs = final_runs(task, method, records)
            shipped = [run["shipped, MB"] for run in runs]
            axes.plot(shipped, [run[task.metric] for run in runs], "o", color=COLOURS[method], label=title)
        axes.set_xscale("log")
        axes.set_xlabel("shipped, MB")
        axes.set_ylabel(f"{task.metric} on chapters not seen")
        axes.set_title(task.name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
