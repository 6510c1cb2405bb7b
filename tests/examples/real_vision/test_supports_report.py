"""The table of supports: the runs with the chosen rate, their mean over seeds, and rows of the comparison of rules."""

from dataclasses import asdict
from pathlib import Path

from examples.real_vision.compare_rules import RATES as RATES_OF_RULES
from examples.real_vision.compare_rules import RuleRun, searched
from examples.real_vision.compare_supports import RATES, SupportRun, chosen_rate
from examples.real_vision.rules import Rule
from examples.real_vision.supports import METHODS, SHARE
from examples.real_vision.supports_report import write_report


def test_a_row_has_the_runs_of_the_chosen_rate(tmp_path: Path) -> None:
    done, rules = {}, {}

    def add(run: SupportRun, test: float, loss: float) -> None:
        done[run.key] = {**asdict(run), "test": test, "validation_loss": loss, "share": SHARE}

    for method in METHODS:
        for rate in RATES:
            add(SupportRun(method, rate, "S", 0), 0.5 if rate == RATES[1] else 0.1, 0.0 if rate == RATES[1] else 1.0)
    add(SupportRun("LoRA", RATES[1], "S", 1), 0.7, 2.0)
    add(SupportRun("LoRA", RATES[1], "A", 0), 0.9, 2.0)
    for rule in (*searched(), Rule("once", 1.0)):
        for number, rate in enumerate(RATES_OF_RULES["adamw"]):
            run = RuleRun(rule, "adamw", rate, "S", 0)
            rules[run.key] = {**asdict(run), "test": number / 10, "validation_loss": -number, "share": rule.share}
    assert chosen_rate("LoRA", done) == RATES[1]
    (table,) = write_report(done, rules, tmp_path)
    rows = table.read_text().splitlines()
    assert f"| LoRA | 1 | {RATES[1]:g} | 60.0 ± 14.1 (2) | 90.0 (1) |" in rows
    assert f"| random support | 1 | {RATES_OF_RULES['adamw'][-1]:g} | 30.0 (1) |  |" in rows
    assert f"| all weights | 100 | {RATES_OF_RULES['adamw'][-1]:g} | 30.0 (1) |  |" in rows
