"""The page of results begins with what its own tables say."""

import json
from pathlib import Path

from benchmarks.conclusions import conclusions
from benchmarks.record import RESULTS


def recorded() -> dict[str, dict[str, object]]:
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def test_the_recorded_tables_are_concluded_from() -> None:
    families = recorded()
    found = conclusions(families)
    plotted = {Path(path).stem for path in RESULTS.glob("*.png")}
    assert len(found) == len(plotted)  # each family with a picture has its sentence
    swap = {row["name"]: row for row in families["swap"]["rows"]}  # type: ignore[attr-defined]
    assert any(f"{swap['rst: prepared, on and off']['milliseconds']:.1f} ms" in line for line in found)


def test_a_family_that_was_not_measured_has_no_sentence() -> None:
    assert conclusions({}) == []
