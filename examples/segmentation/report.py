"""A table's report as Markdown: the paper's IoU per class, ours, the difference, and what is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from examples.segmentation.cells import Cell
from examples.segmentation.classes import CLASSES
from examples.segmentation.tables import Table

MISSING = "-"
Result = Mapping[str, Any]


def collect(cells: Sequence[Cell]) -> dict[str, list[Result]]:
    """Finished results by row, one a seed. Raises `ChangedCellError` if one has other settings than now."""
    rows: dict[str, list[Result]] = {}
    for cell in cells:
        found = rows.setdefault(cell.row, [])
        if (result := cell.result()) is not None:
            found.append(result)
    return rows


def markdown(table: Table, rows: Mapping[str, Sequence[Result]], command: str, *, generated: bool) -> str:
    """The report.

    Args:
        table: its title and published figures.
        rows: finished results by row.
        command: what made them.
        generated: whether they are of generated scenes, which nothing published compares with.
    """
    lines = [f"## {table.title}", "", f"    {command}", ""]
    if generated:
        lines += [
            "**Generated scenes, tiny networks: these figures show that rows run and that training learns. They are no",
            "results on the real data sets, and rows differ in length, so they do not compare.**",
            "",
        ]
    else:
        lines += [
            "Ours is the model at the end of training, mean over seeds; the paper does not say how it selects.",
            "",
        ]
    lines += _line(["row", "", *CLASSES, "mIoU", "DSP (M)"]) + _line(["---"] * (len(CLASSES) + 4))
    for label, results in rows.items():
        lines += _row(label, results, None if generated else table.paper[label])
    lines += ["", *_line(["row", "start", "end", "best", "source loss, first", "last", "kept", "bytes", "hours"])]
    lines += _line(["---"] * 9)
    for label, results in rows.items():
        if results:
            lines += _training(label, results)
    return "\n".join(lines) + "\n"


def _row(label: str, results: Sequence[Result], paper: Mapping[str, Any] | None) -> list[str]:
    ours = [_mean([r["per_class"].get(name) for r in results]) for name in CLASSES]
    miou = _mean([r["last"] for r in results])
    dsp = _mean([r["dsp"] / 1e6 for r in results])
    lines = _line([label, "ours", *map(_number, ours), _number(miou), _number(dsp, 2)])
    if paper is None:
        return lines
    published = _line(
        [label, "paper", *map(_number, paper["per_class"]), _number(paper["miou"]), f"{paper['dsp']:.2f}"]
    )
    differences = [_minus(a, b) for a, b in zip(ours, paper["per_class"], strict=True)]
    difference = _minus(miou, paper["miou"])
    signed = [_number(value, sign="+") for value in (*differences, difference)]
    return [*published, *lines, *_line([label, "ours - paper", *signed, _number(_minus(dsp, paper["dsp"]), 2, "+")])]


def _training(label: str, results: Sequence[Result]) -> list[str]:
    curves = [result["curve"] for result in results]
    losses = [[point["losses"]["source"] for point in curve if point["losses"]] for curve in curves]
    first = _mean([values[0] if values else None for values in losses])
    last = _mean([values[-1] if values else None for values in losses])
    kept = _mean([None if curve[-1]["kept"] is None else 100 * curve[-1]["kept"] for curve in curves])
    return _line(
        [
            label,
            _number(_mean([curve[0]["miou"] for curve in curves])),
            _number(_mean([result["last"] for result in results])),
            _number(_mean([result["best"] for result in results])),
            _number(first, 3),
            _number(last, 3),
            MISSING if kept is None else f"{kept:.2f} %",
            f"{_mean([result['bytes'] for result in results]):,.0f}",
            _number(_mean([result["hours"] for result in results]), 3),
        ]
    )


def write_report(table: Table, cells: Sequence[Cell], folder: Path, command: str, *, generated: bool = False) -> str:
    """Write `report.md`, `scores.png` and `schedule.png` into a folder, and return the report's text."""
    from examples.segmentation.curves import draw_schedules, draw_scores

    rows = collect(cells)
    folder.mkdir(parents=True, exist_ok=True)
    if generated:
        table = replace(table, title=f"Generated scenes, tiny networks ({table.name} --smoke)")
    draw_scores(table.title, rows, folder / "scores.png")
    page = markdown(table, rows, command, generated=generated) + "\n![mIoU over iterations](scores.png)\n"
    if any(point["threshold"] is not None for results in rows.values() for r in results for point in r["curve"]):
        draw_schedules(table.title, rows, folder / "schedule.png")
        page += "\n![tau and the share of weights kept](schedule.png)\n"
    for cell in cells:
        picture = cell.path.with_suffix(".png")
        if picture.exists() and (cell.settings.tuning == "rst" or not generated):  # the others hardly trained
            relative = picture.relative_to(folder).as_posix()
            page += f"\n{cell.row}: input, ground truth, before, after\n\n![{cell.row}]({relative})\n"
    (folder / "report.md").write_text(page)
    return page


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _minus(ours: float | None, theirs: float) -> float | None:
    return None if ours is None else ours - theirs


def _number(value: float | None, digits: int = 1, sign: str = "") -> str:
    return MISSING if value is None else f"{value:{sign}.{digits}f}"


def _line(entries: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(entries) + " |"]
