"""The command line: what it lists, what it refuses and how, and a table from beginning to end on fake data."""

from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from examples.uda import scheduling
from examples.uda.cli import app, main
from examples.uda.tables import table_names
from tests.examples.uda.smoke_runs import tiny_cell

runner = CliRunner()


def test_list_has_every_table(tmp_path):
    result = runner.invoke(app, ["list", "--output", str(tmp_path)])
    assert result.exit_code == 0
    assert all(name in result.output for name in table_names())
    assert "0 of 60" in result.output


def test_without_data_it_says_what_to_download(refusal, tmp_path):
    said = refusal(main, "reproduce", "table1", "--output", tmp_path)
    assert "--data is missing" in said
    assert "Office-Home" in said
    assert "Download" in said or "download" in said


def test_wrong_data_are_refused_before_training(refusal, tmp_path):
    said = refusal(main, "reproduce", "table2", "--data", tmp_path, "--output", tmp_path / "out")
    assert "Office-31" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "table7"], "'table7'"),
        (["reproduce", "table1", "--backbone", "RN18"], "'RN18'"),
        (["reproduce", "table1", "--method", "cmdk"], "'cmdk'"),
        (["reproduce", "table1", "--only", "Ar-Xx"], "'Ar-Xx'"),
        (["check", "office_hom", "--data", "."], "'office_hom'"),
    ],
)
def test_misuse_is_named(refusal, arguments, message):
    assert message in refusal(main, *arguments)


def test_one_cell_s_failure_does_not_stop_the_others(monkeypatch, tmp_path):
    def run_cell(cell, root, **options):
        if cell.seed == 42:
            raise RuntimeError("out of memory")
        if cell.seed == 43:
            return {"status": "diverged", "error": "the loss is not finite after 7 iterations"}
        return {"status": "finished", "last": 1.0, "oracle": 2.0}

    monkeypatch.setattr(scheduling, "run_cell", run_cell)
    console = Console(record=True)
    first = tiny_cell(tmp_path)
    others = [replace(first, seed=seed) for seed in (43, 44)]
    assert scheduling.run_all([first, *others], tmp_path, workers=1, loaders=0, console=console) == [first]
    text = console.export_text()
    assert "out of memory" in text
    assert "seed 43: diverged: the loss is not finite after 7 iterations" in text
    assert "seed 44: last 1.0 %" in text


def test_a_table_from_smoke_to_report(tmp_path):
    smoke = runner.invoke(app, ["reproduce", "table10", "--smoke"])
    assert smoke.exit_code == 0, smoke.output
    assert smoke.output.count("runs") == 3

    report = runner.invoke(app, ["report", "table10", "--output", str(tmp_path)])
    assert report.exit_code == 0, report.output
    assert "| alpha=KL | paper | 65.9 |" in report.output
    assert "0 of 36 cells are done" in report.output
    assert (tmp_path / "table10" / "RN50" / "storage.png").stat().st_size > 0
    assert "curves.png" not in report.output  # there is none before the first cell
