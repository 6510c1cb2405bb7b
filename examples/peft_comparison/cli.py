"""The command line: count what tasks store, run the comparison, report it."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from examples.experiment.cell import ChangedCellError
from examples.experiment.command_line import run_command_line
from examples.experiment.settings import SettingsError
from examples.peft_comparison.plan import PLANS, SEEDS, Plan
from examples.uda.benchmarks import DatasetError, get_benchmark
from examples.uda.cells import Cell

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True)

Output = Annotated[Path, typer.Option(help="Folder of all results.")]
OUTPUT = Path("outputs")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the command line."""
    run_command_line(app, console, (SettingsError, DatasetError, ChangedCellError, FileNotFoundError))


@app.command()
def dsp() -> None:
    """Count what RN50 and ViT-B/16 store for Office-Home's 12 tasks, beside the paper's figures."""
    from examples.peft_comparison.dsp import markdown

    console.out(markdown(), highlight=False)


@app.command()
def run(
    data: Annotated[Path, typer.Option(help="Folder of the benchmarks' data.", show_default=False)],
    only: Annotated[str | None, typer.Option(help=f"One of {', '.join(PLANS)}; all if left out.")] = None,
    output: Output = OUTPUT,
) -> None:
    """Choose each tuning's learning rate, then run all tasks and seeds; finished runs are skipped.

    Each benchmark is one process on one core, so that its numbers do not depend on the machine; give `--only` to two
    shells to use two.
    """
    torch.set_num_threads(1)
    for plan in _chosen(only):
        domains = sorted({domain for task in plan.tasks for domain in task})
        get_benchmark(plan.settings.benchmark).check(data, domains=domains)
        _run(plan, data, output)


@app.command()
def report(
    output: Output = OUTPUT,
    folder: Annotated[Path, typer.Option(help="Where to write table and figures.")] = RESULTS,
) -> None:
    """Write the table, the figures and the numbers behind them."""
    from examples.peft_comparison.report import write

    console.out(write(list(PLANS.values()), output, folder), highlight=False)


def _run(plan: Plan, data: Path, output: Path) -> None:
    from examples.peft_comparison.choice import choose
    from examples.peft_comparison.running import Runner
    from examples.peft_comparison.tuning import Tuning
    from examples.uda.running import run_cell

    for cell in plan.zero_shot(output):
        if cell.result() is None:
            _announce(cell, run_cell(cell, data))

    runner = Runner(plan, data)

    def run_missing(cell: Cell, tuning: Tuning) -> None:
        if cell.result() is None:
            _announce(cell, runner.run(cell, tuning))

    for tuning in plan.tunings():
        for cell in plan.search(tuning, output).values():
            run_missing(cell, tuning)
    choices = {tuning: choose(plan, tuning, output) for tuning in plan.tunings()}
    for task in plan.tasks:
        for seed in range(SEEDS):  # a comparison that is stopped has whole seeds of all tunings
            for tuning, choice in choices.items():
                if choice is not None:
                    run_missing(plan.cell(tuning, choice.rate, task, seed, output), tuning)


def _announce(cell: Cell, result: dict[str, object]) -> None:
    outcome = f"{result['last']:.1f} %" if result["status"] == "finished" else f"diverged: {result['error']}"
    console.print(f"{cell.name}: {outcome}", highlight=False)


def _chosen(only: str | None) -> list[Plan]:
    if only is not None and only not in PLANS:
        raise SettingsError(f"--only must be one of {', '.join(PLANS)}, got {only!r}")
    return [PLANS[only]] if only else list(PLANS.values())
