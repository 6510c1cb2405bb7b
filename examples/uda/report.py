"""A table's report: the paper's figures, ours, and the difference, as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from cmkd import VALIDATORS
from examples.uda.benchmarks import get_benchmark
from examples.uda.cells import Cell, cells
from examples.uda.tables import Variant

PAPER = Path(__file__).parent / "paper"
MISSING = "-"


@dataclass(frozen=True)
class RowResults:
    """The cells of one row that are done.

    Attributes:
        label: the row's name.
        by_task: results of the finished cells by task name, one a seed.
        diverged: iterations by task name, one a cell that diverged.
        planned: how many cells the row has.
    """

    label: str
    by_task: Mapping[str, Sequence[Mapping[str, Any]]]
    diverged: Mapping[str, Sequence[int]]
    planned: int

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """Those of all finished cells."""
        return [result for results in self.by_task.values() for result in results]

    @property
    def complete(self) -> bool:
        """Whether averages would be of all tasks and seeds; a row with a diverged cell has none."""
        return len(self.results) == self.planned

    def average(self, key: str) -> float | None:
        """Mean over seeds and tasks, None before the row is complete."""
        return float(mean(result[key] for result in self.results)) if self.complete else None

    def spread(self, key: str) -> float | None:
        """Standard deviation over seeds of the mean over tasks."""
        if not self.complete or any(len(results) < 2 for results in self.by_task.values()):
            return None
        return float(stdev(mean(result[key] for result in seed) for seed in zip(*self.by_task.values(), strict=True)))

    def dsp(self) -> float | None:
        """Downstream parameters of all tasks together, in millions (Sec. IV.A)."""
        if not self.complete:
            return None
        return sum(mean(result["dsp"] for result in results) for results in self.by_task.values()) / 1e6


def collect(variant: Variant, output: Path, seeds: int | None) -> list[RowResults]:
    """Read the finished cells of a variant. Raises `ChangedCellError` if one has other settings than now."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells(variant, output, seeds=seeds):
        rows.setdefault(cell.row, []).append(cell)
    return [_row(label, planned) for label, planned in rows.items()]


def _row(label: str, planned: list[Cell]) -> RowResults:
    by_task: dict[str, list[Mapping[str, Any]]] = {"-".join(cell.task): [] for cell in planned}
    diverged: dict[str, list[int]] = {task: [] for task in by_task}
    for cell in planned:
        task, result = "-".join(cell.task), cell.result()
        if result is None:
            continue
        if result["status"] == "diverged":
            diverged[task].append(result["iteration"])
        else:
            by_task[task].append(result)
    return RowResults(label, by_task, diverged, len(planned))


def published(table: str, variant: str) -> tuple[str, list[str], dict[str, dict[str, Any]]]:
    """Where the paper has this table, its columns, and its rows by label; empty for tables of our own."""
    path = PAPER / f"{table}.yaml"
    if not path.exists():
        return "", [], {}
    content = yaml.safe_load(path.read_text())
    return content["where"], content["columns"], content["rows"].get(variant, {})


def markdown(variant: Variant, rows: Sequence[RowResults], command: str) -> str:
    """The report of one variant: accuracy by column, then averages, model selection and storage."""
    where, columns, paper = published(variant.table, variant.name)
    benchmark = get_benchmark(next(iter(variant.rows.values())).benchmark)
    by_class = benchmark.metric == "mean_per_class"
    if not columns:
        columns = list(benchmark.classes) if by_class else ["-".join(task) for task in benchmark.tasks]

    lines = [f"## {variant.title}", "", f"    {command}", ""]
    if where:
        lines += [
            f"Paper: {where}. Its figures are the best epoch by the target's labels, as the released code selects, so",
            "they are compared with ours selected alike (oracle); `last` is the model at the end of training.",
            "",
        ]
    lines += _line(["row", "", *columns, "avg", "DSP (M)"]) + _line(["---"] * (len(columns) + 4))
    for row in rows:
        lines += _accuracy_lines(row, columns, paper.get(row.label), by_class)
    for label in paper.keys() - {row.label for row in rows}:
        lines += _paper_line(label, columns, paper[label])
    lines += ["", *_selection_table(rows)]
    diverged = [line for row in rows for line in _diverged_lines(row)]
    done = sum(len(row.results) for row in rows) + len(diverged)
    lines += ["", f"{done} of {sum(row.planned for row in rows)} cells are done, {len(diverged)} of them diverged.", ""]
    return "\n".join([*lines, *diverged, ""] if diverged else lines)


def _diverged_lines(row: RowResults) -> list[str]:
    return [
        f"- {row.label}, {task}: diverged after {iteration} iterations"
        for task, iterations in row.diverged.items()
        for iteration in iterations
    ]


def _accuracy_lines(row: RowResults, columns: Sequence[str], paper: dict[str, Any] | None, by_class: bool) -> list[str]:
    last, oracle = (_values(row, columns, key, by_class) for key in ("last", "oracle"))
    lines = _paper_line(row.label, columns, paper) if paper else []
    lines += _line(
        [row.label, "last", *_or_diverged(row, columns, last), _number(row.average("last")), _number(row.dsp(), 3)]
    )
    lines += _line([row.label, "oracle", *_or_diverged(row, columns, oracle), _number(row.average("oracle")), ""])
    if paper:
        values = paper.get("values") or [None] * len(columns)
        differences = [_minus(ours, theirs) for ours, theirs in zip(oracle, values, strict=True)]
        average = _minus(row.average("oracle"), paper.get("avg"))
        lines += _line([row.label, "oracle - paper", *_numbers(differences, "+"), _number(average, sign="+"), ""])
    return lines


def _values(row: RowResults, columns: Sequence[str], key: str, by_class: bool) -> list[float | None]:
    """One number a column: a task's mean over seeds, or a class's (at the end of training only).

    None where a seed diverged: a mean over the others would flatter the method.
    """
    if by_class:
        per_class = [result["per_class"] for result in row.results] if key == "last" else []
        return [mean(scores[str(i)] for scores in per_class) if per_class else None for i in range(len(columns))]
    found = [[] if row.diverged.get(column) else row.by_task.get(column, []) for column in columns]
    return [mean(result[key] for result in results) if results else None for results in found]


def _or_diverged(row: RowResults, columns: Sequence[str], values: Sequence[float | None]) -> list[str]:
    shown = zip(columns, _numbers(values), strict=True)
    return ["diverged" if row.diverged.get(column) else number for column, number in shown]


def _paper_line(label: str, columns: Sequence[str], paper: dict[str, Any]) -> list[str]:
    values = paper.get("values") or [None] * len(columns)
    return _line([label, "paper", *_numbers(values), _number(paper.get("avg")), _number(paper.get("dsp"), 2)])


def _selection_table(rows: Sequence[RowResults]) -> list[str]:
    """Averages of the row's tasks by how the model is chosen, and what a task stores."""
    names = list(VALIDATORS)
    lines = _line(["row", "last", "oracle", *(f"by {name}" for name in names), "bytes a task", "hours"])
    lines += _line(["---"] * (len(names) + 5))
    for row in rows:
        if not row.complete:
            continue
        selected = [mean(result["selected"][name]["accuracy"] for result in row.results) for name in names]
        spread = row.spread("last")
        last = _number(row.average("last")) + (f" ± {spread:.1f}" if spread is not None else "")
        size, hours = row.average("bytes"), sum(result["hours"] for result in row.results)
        lines += _line(
            [row.label, last, _number(row.average("oracle")), *_numbers(selected), f"{size:,.0f}", f"{hours:.2f}"]
        )
    return lines


def _minus(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _numbers(values: Sequence[float | None], sign: str = "") -> list[str]:
    return [_number(value, sign=sign) for value in values]


def _number(value: float | None, digits: int = 1, sign: str = "") -> str:
    return MISSING if value is None else f"{value:{sign}.{digits}f}"


def _line(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]
