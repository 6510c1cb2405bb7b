"""RESULTS.md: conclusions, then every recorded family as a table, with its machine, versions and command."""

import json
from pathlib import Path
from typing import Any

from benchmarks.conclusions import conclusions
from benchmarks.record import RESULTS

PAGE = Path(__file__).parent / "RESULTS.md"


def write_page() -> Path:
    """Write the page from what `results/` holds."""
    families = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    first = [
        "# Benchmark results",
        "",
        "What the tables below say:",
        "",
        *conclusions({one["family"]: one for one in families}),
    ]
    PAGE.write_text("\n".join([*first, "", *(line for one in families for line in section(one))]))
    return PAGE


def section(family: dict[str, Any]) -> list[str]:
    """The lines of one family: command, table, notes, picture, machine."""
    columns = list(dict.fromkeys(column for row in family["rows"] for column in row))
    lines = [f"## {family['title']}", "", f"`{family['command']}`", ""]
    lines += ["| " + " | ".join(["", *columns[1:]]) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in family["rows"]]
    lines += ["", *(f"- {note}" for note in family["notes"])]
    plot = RESULTS / f"{family['family']}.png"
    lines += ["", f"![{family['title']}](results/{plot.name})"] if plot.is_file() else []
    machine = ", ".join(f"{key} {value}" for key, value in family["machine"].items() if value)
    versions = ", ".join(f"{key} {value}" for key, value in family["versions"].items())
    return [*lines, "", f"Machine: {machine}. Versions: {versions}.", ""]


def _cell(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, (int, float)) else str(value)
