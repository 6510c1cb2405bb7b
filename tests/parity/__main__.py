"""`python -m tests.parity`: how far each method is from its original, as a table in Markdown."""

import sys

from tests.parity.originals import ORIGINALS


def table() -> str:
    """A line for each file of numbers: largest relative differences of values and gradients, and what is not equal."""
    lines = ["| method | original | values | gradients | unequal |", "|---|---|---:|---:|---:|"]
    for name, original in ORIGINALS.items():
        largest: dict[str, float] = {}
        for case_name, case in original.read(name).items():
            for kind, _, difference in original.compare(case_name, case).merged():
                largest[kind] = max(difference, largest.get(kind, 0.0))
        values, gradients = (f"{largest[kind]:.1e}" if kind in largest else "" for kind in ("values", "gradients"))
        unequal = f"{largest['exact']:.0f}" if "exact" in largest else ""
        lines.append(f"| {original.method} | {original.source} | {values} | {gradients} | {unequal} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
