"""Every family of benchmarks runs on small inputs; each asserts that what it times is correct. No time is judged."""

import importlib
import json
from pathlib import Path

import pytest

from benchmarks.record import Row
from benchmarks.results_page import section
from benchmarks.timing import race

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.mark.parametrize(
    "family", ["projection", "swap", "checkpoints", "training_memory", "mixed_batch", "sync_scale", "sync_real"]
)
def test_a_family_runs_and_its_table_is_complete(family: str, tmp_path: Path) -> None:
    path = importlib.import_module(f"benchmarks.{family}").run(True, tmp_path)
    content = json.loads(path.read_text())
    assert content["command"] == f"python -m benchmarks {family}"
    assert content["rows"]
    assert (tmp_path / f"{family}.png").read_bytes().startswith(b"\x89PNG")
    page = "\n".join(section(content))
    for row in content["rows"]:
        assert row["name"] in page


def test_a_race_warms_up_and_runs_everyone_once_a_round_in_orders_that_change() -> None:
    calls: list[str] = []
    timings = race({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=20)
    turns = ["".join(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert turns[0] == "abc"
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 3
    assert len(turns) == 1 + 20
    assert timings["a"].rounds == 20
    assert timings["a"].best <= timings["a"].median


def test_rows_may_have_different_columns() -> None:
    rows = [Row("one", {"x": 1}), Row("two", {"y": 2.5})]
    family = {"title": "t", "command": "c", "family": "f", "notes": [], "machine": {}, "versions": {}}
    table = section({**family, "rows": [{"name": row.name, **row.numbers} for row in rows]})
    assert "|  | x | y |" in table
    assert "| two |  | 2.5 |" in table
