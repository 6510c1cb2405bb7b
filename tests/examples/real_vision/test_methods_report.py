"""The table of methods: the runs with the chosen rate, their mean over seeds, and the costs."""

from dataclasses import asdict
from pathlib import Path

from examples.real_vision.compare_methods import MethodRun, chosen_rate
from examples.real_vision.methods import METHODS
from examples.real_vision.methods_report import write_report


def test_a_row_has_the_runs_of_the_chosen_rate(tmp_path: Path) -> None:
    done = {}

    def add(run: MethodRun, test: float, loss: float) -> None:
        done[run.key] = {**asdict(run), "test": test, "validation_loss": loss, "share": 0.01}

    for name, method in METHODS.items():
        best = method.rates[len(method.rates) // 2]
        for rate in method.rates:
            add(MethodRun(name, rate, "S", 0), 0.5 if rate == best else 0.1, 0.0 if rate == best else 1.0)
    best = METHODS["LoRA"].rates[1]
    assert chosen_rate("LoRA", done) == best
    add(MethodRun("LoRA", best, "S", 1), 0.7, 2.0)
    add(MethodRun("LoRA", best, "A", 0), 0.9, 2.0)
    costs = {name: {"shipped": 1_234_000, "peak": 56_000_000, "seconds": 7.89} for name in METHODS}
    table, picture = write_report(done, costs, tmp_path)
    rows = table.read_text().splitlines()
    assert f"| LoRA | 1 | {best:g} | 60.0 ± 14.1 (2) | 90.0 (1) |  | 1,234 | 56 | 7.9 |" in rows
    assert picture.read_bytes().startswith(b"\x89PNG")
