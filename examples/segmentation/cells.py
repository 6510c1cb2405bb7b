"""The cells of a table: one row with one seed each."""

from collections.abc import Sequence
from pathlib import Path

from examples.experiment.cell import ExperimentCell
from examples.segmentation.settings import Settings
from examples.segmentation.tables import Table
from examples.uda.tables import FIRST_SEED

Cell = ExperimentCell[Settings, tuple[str, str]]


def cells(table: Table, output: Path, *, rows: Sequence[str] | None = None, seeds: int | None = None) -> list[Cell]:
    """List the cells of a table, row by row.

    Args:
        table: the rows.
        output: folder of all results.
        rows: labels of those wanted; all if left out.
        seeds: runs of each cell; the table's own number if left out. Rows without training have one.
    """
    found = []
    for row, settings in table.rows.items():
        if rows is None or row in rows:
            for seed in range((seeds or table.seeds) if settings.method != "none" else 1):
                task = (settings.source, settings.target)
                found.append(Cell(table.name, settings.network, row, settings, task, FIRST_SEED + seed, output))
    return found
