"""The comparison as a table: accuracy over seeds, what a task stores, and how each learning rate was chosen."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from examples.peft_comparison.choice import VALIDATOR, Choice, choose
from examples.peft_comparison.plan import SEEDS, Plan
from examples.uda.cells import Cell

MISSING = "-"
TEACHER = "Teacher, zero-shot"


@dataclass(frozen=True)
class Row:
    """What is known of one tuning on one benchmark.

    Attributes:
        label: the tuning's name.
        accuracy: target accuracies in per cent by task, one a finished seed.
        diverged: number of seeds by task that diverged.
        parameters: that a task stores (DSP), mean over the finished runs.
        bytes: of the files that hold them, mean likewise.
        choice: of the learning rate, None for the teacher and while the search is under way.
    """

    label: str
    accuracy: Mapping[str, Sequence[float]]
    diverged: Mapping[str, int]
    parameters: float
    bytes: float
    choice: Choice | None

    def average(self) -> str:
        """Mean over tasks, with the standard deviation over seeds of that mean; "-" if runs are missing."""
        wanted = 1 if self.label == TEACHER else SEEDS
        if any(len(values) != wanted for values in self.accuracy.values()):
            return MISSING
        return _mean_and_spread([mean(values) for values in zip(*self.accuracy.values(), strict=True)])


def collect(plan: Plan, output: Path) -> list[Row]:
    """Read what is done of a plan. Raises `ChangedCellError` if a run had other settings than now."""
    rows = [_row(TEACHER, plan.zero_shot(output), None)]
    for tuning in plan.tunings():
        choice = choose(plan, tuning, output)
        if choice is not None:
            rows.append(_row(tuning.label, plan.final(tuning, choice.rate, output), choice))
    return rows


def _row(label: str, cells: Sequence[Cell], choice: Choice | None) -> Row:
    accuracy: dict[str, list[float]] = {"-".join(cell.task): [] for cell in cells}
    diverged = dict.fromkeys(accuracy, 0)
    stored: list[Mapping[str, Any]] = []
    for cell in cells:
        task, result = "-".join(cell.task), cell.result()
        if result is None:
            continue
        if result["status"] == "diverged":
            diverged[task] += 1
        else:
            accuracy[task].append(result["last"])
            stored.append(result)
    parameters, size = (mean(result[key] for result in stored) if stored else 0.0 for key in ("dsp", "bytes"))
    return Row(label, accuracy, diverged, parameters, size, choice)


def markdown(plan: Plan, rows: Sequence[Row]) -> str:
    """One benchmark's tables."""
    tasks = ["-".join(task) for task in plan.tasks]
    lines = [f"## {plan.title}", ""]
    lines += _line(["tuning", *tasks, "mean", "parameters a task", "bytes a task"])
    lines += _line(["---", *["---:"] * (len(tasks) + 3)])
    for row in rows:
        lines += _line(
            [
                row.label,
                *(_accuracy(row, task) for task in tasks),
                row.average(),
                f"{row.parameters:,.0f}",
                f"{row.bytes:,.0f}",
            ]
        )
    settings = plan.settings
    lines += [
        "",
        f"Target accuracy in % after the last of {settings.iterations} iterations of {settings.batch_size} images of "
        f"each domain: mean and standard deviation over {SEEDS} seeds; in brackets how many, where some are missing.",
        "",
        f"The learning rate of each, chosen on {tasks[0]} with the first seed by `{VALIDATOR}`, which sees no label "
        "(in bold; the score of each rate):",
        "",
    ]
    lines += _line(["tuning", *(f"{rate:g}" for rate in plan.rates)]) + _line(["---", *["---:"] * len(plan.rates)])
    for row in rows:
        if row.choice is not None:
            lines += _line([row.label, *(_score(row.choice, rate) for rate in plan.rates)])
    lines += ["", f"![accuracy against storage]({plan.name}.png)", ""]
    return "\n".join(lines)


def write(plans: Sequence[Plan], output: Path, folder: Path) -> str:
    """Write table, figures and numbers of every plan that has begun; return the table."""
    from examples.peft_comparison.plots import draw

    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for plan in plans:
        rows = collect(plan, output)
        if len(rows) == 1:  # the teacher alone
            continue
        pages.append(markdown(plan, rows))
        draw(plan.title, rows, folder / f"{plan.name}.png")
        (folder / f"{plan.name}.json").write_text(json.dumps(_numbers(plan, rows), indent=1) + "\n")
    page = "\n".join(["    python -m examples.peft_comparison report", "", *pages])
    (folder / "report.md").write_text(page)
    return page


def _numbers(plan: Plan, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything behind the tables, the scores of every learning rate included."""
    return {
        "settings": plan.settings.to_dict(),
        "validator": VALIDATOR,
        "rates": list(plan.rates),
        "rows": [asdict(row) for row in rows],
    }


def _accuracy(row: Row, task: str) -> str:
    values, diverged = row.accuracy[task], row.diverged[task]
    if diverged:
        return f"{diverged} diverged"
    if not values:
        return MISSING
    missing = row.label != TEACHER and len(values) < SEEDS
    return _mean_and_spread(values) + (f" ({len(values)})" if missing else "")


def _mean_and_spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _score(choice: Choice, rate: float) -> str:
    value = choice.scores[rate]
    shown = "diverged" if value is None else f"{value:.3f}"
    return f"**{shown}**" if rate == choice.rate else shown


def _line(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]
