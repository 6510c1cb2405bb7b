"""The command line: list the tables, count parameters, check data, reproduce a table, report it."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate.utils import set_seed
from rich.console import Console
from rich.table import Table as Columns

from examples.experiment.cell import ChangedCellError
from examples.experiment.command_line import bar, bars, run_command_line
from examples.experiment.settings import SettingsError
from examples.segmentation.cells import Cell, cells
from examples.segmentation.domains import get_domain
from examples.segmentation.report import write_report
from examples.segmentation.settings import Settings
from examples.segmentation.tables import Table, load_table, table_names
from examples.uda.benchmarks import DatasetError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True)
OUTPUT = Path("outputs/segmentation")

Output = Annotated[Path, typer.Option(help="Folder of all results.")]
Data = Annotated[Path, typer.Option(help="Folder that holds gta5/, cityscapes/, acdc/.", show_default=False)]
TableName = Annotated[str, typer.Argument(help="As `list` names it.")]
Rows = Annotated[list[str] | None, typer.Option("--row", help="Only this row; may be repeated.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Runs of each cell; the configuration's if left out.")]
Smoke = Annotated[bool, typer.Option(help="Tiny networks on generated scenes: does it run?")]


def main() -> None:
    """Run the command line."""
    run_command_line(app, console, (SettingsError, DatasetError, ChangedCellError, FileNotFoundError))


@app.command("list")
def list_tables(output: Output = OUTPUT) -> None:
    """List the tables, their rows, and how many cells are done."""
    columns = Columns("table", "rows", "cells done", box=None)
    for name in table_names():
        table = load_table(name)
        planned = cells(table, output)
        columns.add_row(name, ", ".join(table.rows), f"{sum(cell.path.exists() for cell in planned)} of {len(planned)}")
    console.print(columns)


@app.command()
def parameters() -> None:
    """Count what every row trains, beside the paper's DSP columns."""
    from examples.segmentation.parameters import markdown

    console.out(markdown(), highlight=False)


@app.command()
def check(domain: str, data: Data) -> None:
    """Check a data set's files: layout, number of images, labels."""
    try:
        found = get_domain(domain)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    found.check(data, list(found.counts))
    console.print(f"{found.title} at {data / found.name} is complete.")


@app.command()
def reproduce(
    table: TableName,
    data: Annotated[Path | None, typer.Option(help="Folder that holds gta5/, cityscapes/, acdc/.")] = None,
    row: Rows = None,
    seeds: Seeds = None,
    loaders: Annotated[int, typer.Option(min=0, help="Processes that read scenes.")] = 4,
    output: Output = OUTPUT,
    smoke: Smoke = False,
) -> None:
    """Run a table's cells; finished ones are skipped, a stopped one goes on."""
    chosen = _choose(table, row)
    if smoke:
        from examples.segmentation.smoke import smoke_table

        torch.set_num_threads(1)  # the networks are too small to share
        smoke_table(chosen, output / "smoke", console, rows=row)
        return
    planned = cells(chosen, output, rows=row, seeds=seeds)
    missing = [cell for cell in planned if cell.result() is None]  # refuses changed ones
    console.print(f"{table}: {len(planned)} cells, {len(planned) - len(missing)} done before.")
    domains = sorted({name for cell in missing for name in cell.task})
    if data is None:
        wanted = [f"{get_domain(name).title}: {get_domain(name).download}" for name in domains]
        raise SettingsError("\n".join(["--data is missing: the folder that holds", *wanted]))
    for name in domains:
        get_domain(name).check(data, list(get_domain(name).counts))
    _run(missing, data, loaders)


@app.command()
def report(
    table: TableName, row: Rows = None, seeds: Seeds = None, output: Output = OUTPUT, smoke: Smoke = False
) -> None:
    """Write a table's report and figures beside its results, and print it: paper, ours, difference."""
    chosen = _choose(table, row)
    command = f"python -m examples.segmentation reproduce {table}"
    if smoke:
        from examples.segmentation.smoke import smoke_cells

        planned = smoke_cells(chosen, output / "smoke", rows=row)
        page = write_report(chosen, planned, output / "smoke" / table, f"{command} --smoke", generated=True)
    else:
        planned = cells(chosen, output, rows=row, seeds=seeds)
        page = write_report(chosen, planned, output / table, f"{command} --data ROOT")
    console.out(page, highlight=False)


@app.command()
def base(
    table: TableName,
    row: Annotated[str, typer.Argument(help="A row of the table.")],
    file: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    seed: Annotated[int, typer.Option(help="The cell's.")] = 42,
) -> None:
    """Write the network as a cell starts: what `rst merge` merges the cell's delta into."""
    from examples.segmentation.artefact import store_base
    from examples.segmentation.building import build_student

    settings: Settings = _choose(table, [row]).rows[row]
    set_seed(seed)
    store_base(build_student(settings), file)
    console.print(f"Written to {file}.")


def _choose(name: str, rows: list[str] | None) -> Table:
    table = load_table(name)
    if unknown := sorted(set(rows or ()) - set(table.rows)):
        raise SettingsError(f"row must be one of {', '.join(table.rows)}, got {unknown[0]!r}")
    return table


def _run(missing: list[Cell], data: Path, loaders: int) -> None:
    from examples.segmentation.running import run_cell

    with bars(console) as progress:
        for cell in missing:
            with bar(progress, cell.name, cell.settings.iterations) as advance:
                result = run_cell(cell, data, workers=loaders, advance=advance)
            console.print(f"{cell.name}: mIoU {result['last']:.1f} %", highlight=False)
