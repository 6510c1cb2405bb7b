"""The cells of a table: one row on one task with one seed each."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from examples.experiment.cell import ExperimentCell
from examples.experiment.settings import SettingsError
from examples.uda.benchmarks import get_benchmark
from examples.uda.methods import parse_method
from examples.uda.settings import Settings
from examples.uda.tables import FIRST_SEED, Variant

Task = tuple[str, str]
"""Source and target domain."""

Cell = ExperimentCell[Settings, Task]


def cells(
    variant: Variant, output: Path, *, tasks: Sequence[Task] | None = None, seeds: int | None = None
) -> list[Cell]:
    """List the cells of a variant, row by row.

    Args:
        variant: the rows.
        output: folder of all results.
        tasks: only these; all of the benchmark's if left out.
        seeds: runs of each cell; the variant's own number if left out. Zero-shot rows have one.
    """
    found = []
    for row, settings in variant.rows.items():
        trained = parse_method(settings.method).trains
        for task in tasks or get_benchmark(settings.benchmark).tasks:
            for seed in range((seeds or variant.seeds) if trained else 1):
                found.append(Cell(variant.table, variant.name, row, settings, task, FIRST_SEED + seed, output))
    return found


def parse_tasks(names: Iterable[str], variant: Variant) -> list[Task]:
    """Tasks from names such as "Ar-Cl". Raises `SettingsError` naming the benchmark's own."""
    known = {"-".join(task): task for task in get_benchmark(next(iter(variant.rows.values())).benchmark).tasks}
    if unknown := [name for name in names if name not in known]:
        raise SettingsError(f"no task {unknown[0]!r}; {variant.table} has {', '.join(known)}")
    return [known[name] for name in names]
