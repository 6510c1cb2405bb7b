"""What the comparison of methods shows: accuracy and costs in a table, and both in a picture."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.real_vision.compare_methods import DOMAINS, chosen_rate
from examples.real_vision.compare_rules import SEEDS
from examples.real_vision.methods import METHODS
from examples.real_vision.rules_report import DOMAIN_NAMES, Record, cell

_COSTS = "shipped, kB | peak memory, MB | training, CPU s"


def write_report(records: Mapping[str, Record], costs: Mapping[str, Record], folder: Path) -> list[Path]:
    """Write `methods.md` and `methods.png` into a folder. Returns their paths."""
    table, figure = folder / "methods.md", folder / "methods.png"
    table.write_text("\n".join(_lines(records, costs)) + "\n")
    _draw(records, costs).savefig(figure, dpi=120)
    return [table, figure]


def _lines(records: Mapping[str, Record], costs: Mapping[str, Record]) -> Iterator[str]:
    yield "| trained | weights, % | rate | " + " | ".join(DOMAIN_NAMES[one] for one in DOMAINS) + f" | {_COSTS} |"
    yield "|---|---:|---:|" + "---:|" * (len(DOMAINS) + 3)
    for method in METHODS:
        rate, runs = _final(method, records)
        cells = [cell([one for one in runs if one["domain"] == domain]) for domain in DOMAINS]
        cost = costs[method]
        cells += [f"{cost['shipped'] / 1e3:,.0f}", f"{cost['peak'] / 1e6:,.0f}", f"{cost['seconds']:.1f}"]
        yield f"| {method} | {100 * max(one['share'] for one in runs):.3g} | {rate:g} | " + " | ".join(cells) + " |"
    yield ""
    yield (
        f"Test accuracy in per cent, mean ± standard deviation over {SEEDS} seeds; in brackets their number where it "
        "is smaller. AdamW; the learning rate of a row is that of the lowest validation loss on sketch with seed 0."
    )


def _final(method: str, records: Mapping[str, Record]) -> tuple[float, list[Record]]:
    rate = chosen_rate(method, records)
    return rate, [one for one in records.values() if (one["method"], one["rate"]) == (method, rate)]


def _draw(records: Mapping[str, Record], costs: Mapping[str, Record]) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    of_bytes, of_memory = figure.subplots(1, 2, sharey=True)
    for number, method in enumerate(METHODS):
        runs = _final(method, records)[1]
        accuracy = statistics.mean(100 * one["test"] for one in runs)
        mark = {"marker": "osD^v<>P*"[number], "color": f"C{number}", "linestyle": "none"}
        of_bytes.plot(costs[method]["shipped"] / 1e3, accuracy, **mark)
        of_memory.plot(costs[method]["peak"] / 1e6, accuracy, label=method, **mark)
    of_bytes.set_xscale("log")
    of_bytes.set_xlabel("shipped, kB")
    of_bytes.set_ylabel("test accuracy, %, mean of domains and seeds")
    of_memory.set_xlabel("peak memory of training, MB")
    for axes in (of_bytes, of_memory):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    return figure
