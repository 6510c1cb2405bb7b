"""The command line: list the tables, check data, reproduce a table, report it."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from examples.experiment.cell import ChangedCellError
from examples.experiment.command_line import run_command_line
from examples.experiment.settings import SettingsError
from examples.uda.benchmarks import DatasetError, get_benchmark
from examples.uda.cells import Cell, cells, parse_tasks
from examples.uda.report import collect, markdown
from examples.uda.scheduling import run_all
from examples.uda.tables import Variant, table_names, variants, with_method
from examples.uda.tensorboard_log import require_tensorboard

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True, quiet=os.environ.get("RANK", "0") != "0")  # one of several processes speaks

Data = Annotated[Path, typer.Option(help="Folder of the benchmark's data.", show_default=False)]
Output = Annotated[Path, typer.Option(help="Folder of all results.")]
OUTPUT = Path("outputs/uda")


def main() -> None:
    """Run the command line."""
    run_command_line(app, console, (SettingsError, DatasetError, ChangedCellError, FileNotFoundError))


@app.command("list")
def list_tables(output: Output = OUTPUT) -> None:
    """List all tables, their backbones and methods, and how many cells are done."""
    table = Table("table", "backbone", "rows", "cells done", box=None)
    for name in table_names():
        for variant in variants(name):
            planned = cells(variant, output)
            done = sum(cell.path.exists() for cell in planned)
            table.add_row(name, variant.name, ", ".join(variant.rows), f"{done} of {len(planned)}")
    console.print(table)


@app.command()
def check(benchmark: str, data: Data) -> None:
    """Check a benchmark's files: layout, classes, number of images."""
    try:
        found = get_benchmark(benchmark)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    found.check(data)
    console.print(f"{found.title} at {data} is complete.")


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="As `list` names it.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the benchmark's data.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A task such as Ar-Cl; may be repeated.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Only this backbone.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method; one that the table lacks is added.")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each cell; the configuration's if left out.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Cells at the same time, a core each.")] = 1,
    loaders: Annotated[int, typer.Option(min=0, help="Processes that load images, a cell.")] = 0,
    output: Output = OUTPUT,
    tensorboard: Annotated[bool, typer.Option(help="Curves as TensorBoard events beside the results.")] = False,
    smoke: Annotated[bool, typer.Option(help="A few iterations of tiny models on fake data: does it run?")] = False,
) -> None:
    """Run a table's cells; finished ones are skipped, a stopped one goes on."""
    chosen = _choose(table, backbone, method)
    if smoke:
        from examples.uda.smoke import smoke_table

        smoke_table(chosen, console)
        return
    if tensorboard:
        require_tensorboard()
    planned = [cell for variant in chosen for cell in _cells(variant, output, only, seeds)]
    missing = [cell for cell in planned if cell.result() is None]  # refuses changed ones
    console.print(f"{table}: {len(planned)} cells, {len(planned) - len(missing)} done before.")
    if data is None:
        raise SettingsError(f"--data is missing: the folder that holds {_wanted(chosen)}")
    _check_data(missing, data)
    failed = run_all(missing, data, workers=workers, loaders=loaders, tensorboard=tensorboard, console=console)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    table: Annotated[str, typer.Argument(help="As `list` names it.")],
    backbone: Annotated[str | None, typer.Option(help="Only this backbone.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="As given to `reproduce`.")] = None,
    output: Output = OUTPUT,
) -> None:
    """Write a table's report and figures beside its results, and print it: paper, ours, difference."""
    from examples.uda.plots import draw_curves, draw_storage

    pages = []
    for variant in _choose(table, backbone, None):
        rows = collect(variant, output, seeds)
        folder = output / table / variant.name
        folder.mkdir(parents=True, exist_ok=True)
        draw_storage(variant.title, rows, folder / "storage.png")
        curves = draw_curves(variant.title, rows, folder / "curves.png")
        page = markdown(
            variant, rows, f"python -m examples.uda reproduce {table} --backbone {variant.name} --data ROOT"
        )
        figures = f"![accuracy against storage]({variant.name}/storage.png)\n"
        if curves:
            figures += f"\n![curves]({variant.name}/curves.png)\n"
        pages.append(f"{page}\n{figures}")
    path = output / table / "report.md"
    path.write_text("\n".join(pages))
    console.out("\n".join(pages), highlight=False)
    console.print(f"Written to {path}.")


def _choose(table: str, backbone: str | None, method: str | None) -> list[Variant]:
    found = variants(table)
    if backbone is not None:
        names = [variant.name for variant in found]
        found = [variant for variant in found if variant.name == backbone]
        if not found:
            raise SettingsError(f"--backbone must be one of {', '.join(names)} for {table}, got {backbone!r}")
    return [with_method(variant, method) for variant in found] if method else found


def _cells(variant: Variant, output: Path, only: list[str] | None, seeds: int | None) -> list[Cell]:
    return cells(variant, output, tasks=parse_tasks(only, variant) if only else None, seeds=seeds)


def _wanted(chosen: list[Variant]) -> str:
    benchmarks = {settings.benchmark for variant in chosen for settings in variant.rows.values()}
    found = [get_benchmark(name) for name in sorted(benchmarks)]
    return "\n".join(f"{benchmark.title}:\n{benchmark.layout}\n{benchmark.download}" for benchmark in found)


def _check_data(missing: list[Cell], root: Path) -> None:
    """Refuse data that are not as expected, before any cell starts."""
    needed: dict[str, set[str]] = {}
    for cell in missing:
        needed.setdefault(cell.settings.benchmark, set()).update(cell.task)
    for name, domains in needed.items():
        get_benchmark(name).check(root, domains=sorted(domains))
