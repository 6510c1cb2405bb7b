"""Table X as YAML files, one per setting of data and network: `configs/<variant>.yaml` gives its rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from examples.experiment.cell import ExperimentCell
from examples.experiment.settings import SettingsError
from examples.optical_flow.settings import Settings

CONFIGS = Path(__file__).parent / "configs"
TABLE = "appendix10"
SEED = 42


FlowCell = ExperimentCell[Settings, tuple[str]]
"""Its task is one data set instead of two domains."""


@dataclass(frozen=True)
class Variant:
    """One file.

    Attributes:
        name: the file's.
        title: for reports.
        scenes: number of generated pairs; 0 for KITTI itself.
        rows: the settings of each row by its label in the paper.
    """

    name: str
    title: str
    scenes: int
    rows: Mapping[str, Settings]


def variant_names() -> list[str]:
    """All of them."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_variant(name: str) -> Variant:
    """Read one file; its keys are `title`, `scenes`, `common` (settings of all rows) and `rows`.

    Raises:
        SettingsError: no such file, or naming the file and the key that is unknown, missing or wrong.
    """
    if name not in variant_names():
        raise SettingsError(f"variant must be one of {', '.join(variant_names())}, got {name!r}")
    path = CONFIGS / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    try:
        if unknown := sorted(content.keys() - {"title", "scenes", "common", "rows"}):
            raise SettingsError(f"unknown key {unknown[0]!r}; known are title, scenes, common, rows")
        if missing := sorted({"title", "common", "rows"} - content.keys()):
            raise SettingsError(f"missing key {missing[0]!r}")
        rows = {label: Settings.from_dict({**content["common"], **row}) for label, row in content["rows"].items()}
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return Variant(name, content["title"], content.get("scenes", 0), rows)


def cells(variant: Variant, output: Path, *, method: str | None = None) -> list[FlowCell]:
    """List the cells of a variant, or those of one method. Raises `SettingsError` if no row has it."""
    chosen = {label: row for label, row in variant.rows.items() if method in (None, row.method)}
    if not chosen:
        known = ", ".join(sorted({row.method for row in variant.rows.values()}))
        raise SettingsError(f"--method must be one of {known} in {variant.name}, got {method!r}")
    data = "scenes" if variant.scenes else "kitti2015"
    return [FlowCell(TABLE, variant.name, label, row, (data,), SEED, output) for label, row in chosen.items()]
