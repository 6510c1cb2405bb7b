"""The paper's two tables as YAML files: `configs/<table>.yaml` gives the rows and their settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from examples.experiment.settings import SettingsError
from examples.segmentation.settings import Settings

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: as on the command line; the file's name.
        title: for reports.
        seeds: runs of a cell, unless the command line says otherwise.
        rows: the settings of each row by its label.
        paper: published figures by row: `miou`, `dsp` in millions, `per_class` in the order of the classes.
    """

    name: str
    title: str
    seeds: int
    rows: Mapping[str, Settings]
    paper: Mapping[str, Mapping[str, Any]]


def table_names() -> list[str]:
    """All tables."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_table(name: str) -> Table:
    """Read one table.

    Its keys are `title`, `seeds`, `common` (settings of all rows), `rows` (a label and what differs from `common`)
    and `paper` (published figures).

    Raises:
        SettingsError: if there is no such table, or naming the file and the key that is unknown, missing or wrong.
    """
    if name not in table_names():
        raise SettingsError(f"table must be one of {', '.join(table_names())}, got {name!r}")
    path = CONFIGS / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    if wrong := sorted(content.keys() ^ {"title", "seeds", "common", "rows", "paper"}):
        raise SettingsError(f"{path}: key {wrong[0]!r} is missing or unknown")
    rows = {}
    for label, row in content["rows"].items():
        try:
            rows[label] = Settings.from_dict({**content["common"], **row})
        except SettingsError as error:
            raise SettingsError(f"{path}, row {label}: {error}") from error
    return Table(name, content["title"], content["seeds"], rows, content["paper"])
