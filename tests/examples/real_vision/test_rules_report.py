"""The comparison's table: the runs with the chosen rate, their mean over seeds, and how many there are."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from examples.real_vision.compare_rules import RATES, SHARES, RuleRun, chosen_rate, searched
from examples.real_vision.rules import Rule
from examples.real_vision.rules_report import write_report


def record(run: RuleRun, test: float, loss: float) -> dict[str, Any]:
    return {**asdict(run), "test": test, "validation_loss": loss, "share": run.rule.share}


def test_a_row_has_the_runs_of_the_chosen_rate(tmp_path: Path) -> None:
    done = {}
    for optimizer, rates in RATES.items():
        for rule in searched():
            for rate in rates:
                run = RuleRun(rule, optimizer, rate, "S", 0)
                done[run.key] = record(run, 0.5 if rate == rates[1] else 0.1, 0.0 if rate == rates[1] else 1.0)
    geometric = Rule("geometric", SHARES[0])
    assert chosen_rate(geometric, "adamw", done) == RATES["adamw"][1]
    again = RuleRun(geometric, "adamw", RATES["adamw"][1], "S", 1)
    done[again.key] = record(again, 0.7, 2.0)
    table, figure = write_report(done, tmp_path)
    (row,) = (line for line in table.read_text().splitlines() if line.startswith("| geometric | 1 |"))
    assert "60.0 ± 14.1 (2)" in row
    assert "50.0 (1)" in row
    assert figure.read_bytes().startswith(b"\x89PNG")
