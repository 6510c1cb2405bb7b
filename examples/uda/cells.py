"""A cell of a table: one row's settings on one task with one seed, and its result as one JSON file."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.experiment.settings import SettingsError
from examples.uda.benchmarks import get_benchmark
from examples.uda.methods import parse_method
from examples.uda.settings import Settings
from examples.uda.tables import FIRST_SEED, Variant

Task = tuple[str, str]


class ChangedCellError(Exception):
    """A finished cell was run with other settings than those it would have now."""


@dataclass(frozen=True)
class Cell:
    """One run: everything that decides its result, and where that result lies."""

    table: str
    variant: str
    row: str
    settings: Settings
    task: Task
    seed: int
    output: Path

    @property
    def name(self) -> str:
        """For people: table, backbone, row, task and seed."""
        return f"{self.table} {self.variant} {self.row} {'-'.join(self.task)} seed {self.seed}"

    @property
    def path(self) -> Path:
        """The JSON file; what the run saves lies beside it with other suffixes."""
        row = "-".join(re.findall(r"[a-z0-9.+]+", self.row.lower()))
        file = f"{'-'.join(self.task)}-seed{self.seed}.json"
        return self.output / self.table / self.variant / row / file

    @property
    def checkpoint_path(self) -> Path:
        """State of a run in progress; belongs to these settings alone."""
        return self.path.with_suffix(f".{self.settings.fingerprint()}.checkpoint")

    def result(self) -> dict[str, Any] | None:
        """What was stored, None if the cell is not done.

        Raises:
            ChangedCellError: if the stored result has other settings, naming them.
        """
        if not self.path.exists():
            return None
        result: dict[str, Any] = json.loads(self.path.read_text())
        if result["fingerprint"] != self.settings.fingerprint():
            now, then = self.settings.to_dict(), result["settings"]
            keys = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
            changes = ", ".join(f"{key}: {then.get(key)!r} -> {now.get(key)!r}" for key in keys)
            raise ChangedCellError(
                f"{self.path} was run with other settings ({changes}); move it away, or choose another --output"
            )
        return result

    def store(self, result: dict[str, Any]) -> None:
        """Write the JSON file whole or not at all."""
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(result, indent=1))
        unfinished.replace(self.path)


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
