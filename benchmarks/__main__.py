"""Run benchmarks and rewrite RESULTS.md: `python -m benchmarks [family ...] [--quick]`."""

import importlib
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.record import RESULTS
from benchmarks.results_page import write_page

FAMILIES = (
    "projection",
    "swap",
    "storage",
    "dense",
    "checkpoints",
    "training_step",
    "training_memory",
    "mixed_batch",
    "sync_scale",
    "sync_real",
)


def main(
    families: Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(FAMILIES)}; all by default.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small inputs: checks that it runs, measures nothing.")
    ] = False,
) -> None:
    """Measure, write one JSON file a family, and the page of them all; a quick run leaves them alone."""
    with tempfile.TemporaryDirectory() as scratch:
        for family in families or FAMILIES:
            print(importlib.import_module(f"benchmarks.{family}").run(quick, Path(scratch) if quick else RESULTS))
    if not quick:
        print(write_page())


if __name__ == "__main__":
    typer.run(main)
