"""The report of the comparison of rules: a table of test accuracies, and their curves against the kept share."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.real_vision.compare_rules import DOMAINS, RATES, SEEDS, chosen_rate
from examples.real_vision.rules import Rule

Record = Mapping[str, Any]
DOMAIN_NAMES = {"P": "photo", "S": "sketch", "A": "art painting", "C": "cartoon"}
COLOURS = {"once": "#937860", "constant": "#4c72b0", "geometric": "#c44e52", "every": "#55a868", "random": "grey"}


def write_report(records: Mapping[str, Record], folder: Path) -> list[Path]:
    """Write `rules.md` and `rules.png` into a folder. Returns their paths."""
    table, figure = folder / "rules.md", folder / "rules.png"
    table.write_text("\n".join(_lines(records)) + "\n")
    _draw(records).savefig(figure, dpi=120)
    return [table, figure]


def _lines(records: Mapping[str, Record]) -> Iterator[str]:
    columns = [(optimizer, domain) for optimizer in RATES for domain in DOMAINS]
    yield "| rule | kept, % | " + " | ".join(f"{one}, {DOMAIN_NAMES[domain]}" for one, domain in columns) + " |"
    yield "|---|---:|" + "---:|" * len(columns)
    for (_, row), of_row in sorted(_by_row(records).items(), key=lambda item: (-item[0][0], item[0][1])):
        cells = [cell([one for one in of_row if (one["optimizer"], one["domain"]) == column]) for column in columns]
        yield f"| {row} | {_kept(of_row)} | " + " | ".join(cells) + " |"
    yield ""
    yield (
        f"Test accuracy in per cent, mean ± standard deviation over {SEEDS} seeds; in brackets their number where it "
        "is smaller. The learning rate of a rule is that of the lowest validation loss on sketch with seed 0."
    )


def _by_row(records: Mapping[str, Record]) -> dict[tuple[float, str], list[Record]]:
    """The runs of the final comparison, those with the rate that was chosen, by the share asked for and the rule."""
    rows: dict[tuple[float, str], list[Record]] = defaultdict(list)
    for one in records.values():
        if one["rate"] == chosen_rate(Rule(**one["rule"]), one["optimizer"], records):
            rows[one["rule"]["share"] or 0.0, _row(one)].append(one)
    return rows


def _row(one: Record) -> str:
    rule = one["rule"]
    if rule["name"] == "threshold":
        return f"threshold, tau = {rule['threshold'] / one['rate']:g} learning rates"
    return "all weights" if rule["share"] == 1.0 else rule["name"]


def _kept(of_row: list[Record]) -> str:
    low, *_, high = sorted([100 * one["share"] for one in of_row] * 2)
    return f"{low:.3g}" if high - low <= 0.1 * high else f"{low:.3g} to {high:.3g}"


def cell(runs: list[Record]) -> str:
    """Mean and standard deviation of test accuracies in per cent."""
    if not runs:
        return ""
    scores = [100 * one["test"] for one in runs]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.1f}{spread}" + (f" ({len(scores)})" if len(scores) < SEEDS else "")


def _draw(records: Mapping[str, Record]) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, optimizer in zip(figure.subplots(1, len(RATES), sharey=True), RATES, strict=True):
        of_rule: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for (_, row), of_row in _by_row(records).items():
            for one in (one for one in of_row if one["optimizer"] == optimizer):
                share = one["rule"]["share"] if one["rule"]["share"] is not None else one["share"]
                of_rule[row.partition(",")[0]][share].append(100 * one["test"])
        for rule, points in sorted(of_rule.items()):
            shares = sorted(points)
            means = [statistics.mean(points[share]) for share in shares]
            line = "none" if rule == "threshold" else "-"
            axes.plot(
                [100 * s for s in shares],
                means,
                marker="o",
                markersize=4,
                linestyle=line,
                color=COLOURS.get(rule),
                label=rule,
            )
        axes.set_xscale("log")
        axes.set_xlabel("weights kept, %")
        axes.set_title(optimizer)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy, %, mean over domains and seeds")
    figure.axes[0].legend(fontsize=8)
    return figure
