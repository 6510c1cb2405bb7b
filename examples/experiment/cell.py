"""A cell of a table: one row's settings on one task with one seed, and its result as one JSON file."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from examples.experiment.settings import ExperimentSettings

S = TypeVar("S", bound=ExperimentSettings)
T = TypeVar("T", bound=tuple[str, ...])


class ChangedCellError(Exception):
    """A finished cell was run with other settings than those it would have now."""


@dataclass(frozen=True)
class ExperimentCell(Generic[S, T]):
    """One run: everything that decides its result, and where that result lies."""

    table: str
    variant: str
    row: str
    settings: S
    task: T
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

    def record(self, outcome: Mapping[str, Any], device: torch.device, libraries: Sequence[str]) -> dict[str, Any]:
        """The outcome of the run, with what identifies the cell and what it was run with."""
        return {
            "table": self.table,
            "variant": self.variant,
            "row": self.row,
            "task": list(self.task),
            "seed": self.seed,
            **outcome,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
            "versions": {name: version(name) for name in libraries},
            "settings": self.settings.to_dict(),
            "fingerprint": self.settings.fingerprint(),
        }

    def store(self, result: Mapping[str, Any]) -> None:
        """Write the JSON file whole or not at all; the cell is done, and its checkpoint goes."""
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(result, indent=1))
        unfinished.replace(self.path)
        self.checkpoint_path.unlink(missing_ok=True)
