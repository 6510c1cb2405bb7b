"""The paper's tables as YAML files: `configs/<table>/<variant>.yaml` gives a backbone's rows and their settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from examples.experiment.settings import SettingsError
from examples.uda.benchmarks import get_benchmark
from examples.uda.methods import parse_method
from examples.uda.settings import Settings

CONFIGS = Path(__file__).parent / "configs"
FIRST_SEED = 42
"""The paper's (Sec. IV.A)."""


@dataclass(frozen=True)
class Variant:
    """One backbone's part of a table.

    Attributes:
        table: as on the command line, "table1".
        name: "RN50"; the file's name.
        title: for reports.
        seeds: how many runs of a cell, unless the command line says otherwise.
        rows: the settings of each row by its label.
    """

    table: str
    name: str
    title: str
    seeds: int
    rows: Mapping[str, Settings]


def table_names() -> list[str]:
    """All tables, in alphabetical order and numbers by value; last the benchmarks that the paper does not have."""
    return sorted((folder.name for folder in CONFIGS.iterdir() if folder.is_dir()), key=_natural)


def variants(table: str) -> list[Variant]:
    """All variants of a table. Raises `SettingsError` if there is no such table."""
    if table not in table_names():
        raise SettingsError(f"table must be one of {', '.join(table_names())}, got {table!r}")
    return [load_variant(path) for path in sorted((CONFIGS / table).glob("*.yaml"))]


def load_variant(path: Path) -> Variant:
    """Read one file.

    Its keys are `title`, `seeds`, `common` (settings of all rows) and `rows` (a label and what differs from `common`).

    Raises:
        SettingsError: naming the file and the key that is unknown, missing or wrong.
    """
    try:
        content = yaml.safe_load(path.read_text())
        if unknown := sorted(content.keys() - {"title", "seeds", "common", "rows"}):
            raise SettingsError(f"unknown key {unknown[0]!r}; known are title, seeds, common, rows")
        if missing := sorted({"title", "common", "rows"} - content.keys()):
            raise SettingsError(f"missing key {missing[0]!r}")
        rows = {label: Settings.from_dict({**content["common"], **row}) for label, row in content["rows"].items()}
        for settings in rows.values():
            get_benchmark(settings.benchmark)
            parse_method(settings.method)
        return Variant(path.parent.name, path.stem, content["title"], content.get("seeds", 1), rows)
    except ValueError as error:  # SettingsError is one
        raise SettingsError(f"{path}: {error}") from error


def with_method(variant: Variant, method: str) -> Variant:
    """Only the rows of one method; a method that the table lacks becomes a row with the first row's other settings."""
    rows = {label: settings for label, settings in variant.rows.items() if settings.method == method}
    if not rows:
        first = next(iter(variant.rows.values()))
        rows = {method: replace(first, method=method, options={})}
    return replace(variant, rows=rows)


def _natural(name: str) -> tuple[bool, str, int]:
    word, number = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]  # matches anything
    return not number, word, int(number or 0)
