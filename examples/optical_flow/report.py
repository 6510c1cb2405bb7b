"""The report: the paper's figures, ours and the difference, and both ways to count what is stored, as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from examples.optical_flow.settings import Settings
from examples.optical_flow.storage import count_from_architecture
from examples.optical_flow.tables import TABLE, Variant, cells

PAPER = Path(__file__).parent / "paper" / f"{TABLE}.yaml"
MISSING = "-"


@dataclass(frozen=True)
class Row:
    """A row of the table and its result, None before it is run."""

    label: str
    settings: Settings
    result: Mapping[str, Any] | None
    pictures: Sequence[Path]


def collect(variant: Variant, output: Path) -> list[Row]:
    """Read the finished cells of a variant. Raises `ChangedCellError` if one has other settings than now."""
    return [
        Row(cell.row, cell.settings, cell.result(), sorted(cell.path.parent.glob(f"{cell.path.stem}.pair*.png")))
        for cell in cells(variant, output)
    ]


def markdown(variant: Variant, rows: Sequence[Row], folder: Path) -> str:
    """The report of one variant.

    Args:
        variant: what was run.
        rows: its rows, in order.
        folder: where the report will lie, for links to pictures.
    """
    source = "" if variant.scenes else " --data ROOT"
    lines = [f"# {variant.title}", "", f"    python -m examples.optical_flow reproduce {variant.name}{source}", ""]
    lines += [*_scores(variant, rows), "", *_storage(rows), ""]
    done = sum(row.result is not None for row in rows)
    lines += [f"{done} of {len(rows)} cells are done.", ""]
    lines += ["![kept share](kept_share.png)", "", "![curves](curves.png)", ""]
    for row in rows:
        if row.pictures:
            lines += [f"{row.label}: first frame, ground truth (black: unknown), starting weights, trained.", ""]
            lines += [" ".join(f"![pair]({picture.relative_to(folder)})" for picture in row.pictures), ""]
    return "\n".join(lines)


def _scores(variant: Variant, rows: Sequence[Row]) -> list[str]:
    """End-point errors; the paper's only beside runs on its data."""
    paper = _published()["rows"] if variant.name == "kitti2015" else {}
    lines = []
    if paper:
        lines = [f"Paper: {_published()['where']}. Lower is better; EPE in pixels, Fl-all in per cent.", ""]
    lines += _line("row", "EPE, paper", "EPE at the start", "EPE", "EPE - paper", "EPE per image", "Fl-all", "hours")
    lines += _line(*["---"] * 8)
    for row in rows:
        theirs = paper.get(row.label, {}).get("epe")
        last = row.result["last"] if row.result else {}
        start = row.result["start"]["epe"] if row.result else None
        ours = last.get("epe")
        difference = None if ours is None or theirs is None else ours - theirs
        lines += _line(
            row.label,
            _number(theirs),
            _number(start),
            _number(ours),
            _number(difference, "+"),
            _number(last.get("epe_per_image")),
            _number(last.get("fl_all")),
            _number(row.result["hours"] if row.result else None),
        )
    return lines


def _storage(rows: Sequence[Row]) -> list[str]:
    """DSP by the architecture and by what was saved; the paper's beside the network that it is about."""
    large = rows[0].settings.architecture == "raft_large"
    paper = _published()["rows"] if large else {}
    lines = [
        "What a task stores (DSP, millions of weights), counted from the architecture and from the saved file:",
        "",
    ]
    lines += _line(
        "row", "paper", "counted, no context encoder", "counted", "saved, no context encoder", "saved", "bytes"
    )
    lines += _line(*["---"] * 7)
    for row in rows:
        counted, result = count_from_architecture(row.settings), row.result or {}
        lines += _line(
            row.label,
            _millions(paper.get(row.label, {}).get("dsp"), 1),
            _millions(counted.dsp_like_paper),
            _millions(counted.dsp),
            _millions(result.get("dsp_like_paper")),
            _millions(result.get("dsp")),
            f"{result['bytes']:,}" if result else MISSING,
        )
    notes = [f"- {label}: {entry['note']}." for label, entry in paper.items() if "note" in entry]
    return [*lines, "", *notes]


def _published() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(PAPER.read_text())
    return content


def _number(value: float | None, sign: str = "") -> str:
    return MISSING if value is None else f"{value:{sign}.2f}"


def _millions(value: float | None, unit: float = 1e6) -> str:
    return MISSING if value is None else f"{value / unit:.4f}"


def _line(*cells: str) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]
