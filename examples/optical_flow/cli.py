"""The command line: list the variants of Table X, check data, reproduce, report."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from examples.experiment.cell import ChangedCellError
from examples.experiment.command_line import bar, bars, run_command_line
from examples.experiment.settings import SettingsError
from examples.optical_flow.kitti import DOWNLOAD, LAYOUT, KittiError
from examples.optical_flow.kitti import check as check_kitti
from examples.optical_flow.tables import TABLE, FlowCell, Variant, cells, load_variant, variant_names

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(soft_wrap=True)
OUTPUT = Path("outputs/optical_flow")

Output = Annotated[Path, typer.Option(help="Folder of all results.")]
Name = Annotated[str, typer.Argument(metavar="VARIANT", help="As `list` names it.")]


def main() -> None:
    """Run the command line."""
    run_command_line(app, console, (SettingsError, KittiError, ChangedCellError))


@app.command("list")
def list_variants(output: Output = OUTPUT) -> None:
    """List all variants, their rows, and how many cells are done."""
    table = Table("variant", "title", "rows", "cells done", box=None)
    for name in variant_names():
        variant = load_variant(name)
        planned = cells(variant, output)
        done = sum(cell.path.exists() for cell in planned)
        table.add_row(name, variant.title, ", ".join(variant.rows), f"{done} of {len(planned)}")
    console.print(table)


@app.command()
def check(data: Annotated[Path, typer.Option(help="Folder that holds KittiFlow.", show_default=False)]) -> None:
    """Check KITTI-2015's files: names, number, 16-bit flows."""
    check_kitti(data)
    console.print(f"KITTI-2015 at {data} is complete.")


@app.command()
def reproduce(
    variant: Name,
    data: Annotated[Path | None, typer.Option(help="Folder that holds KittiFlow; not for generated scenes.")] = None,
    method: Annotated[str | None, typer.Option(help="Only rows of this method, such as rst.")] = None,
    loaders: Annotated[int, typer.Option(min=0, help="Processes that load and augment images.")] = 0,
    output: Output = OUTPUT,
    smoke: Annotated[bool, typer.Option(help="Short runs of a tiny network on generated scenes.")] = False,
) -> None:
    """Run a variant's cells; finished ones are skipped, a stopped one goes on."""
    chosen = load_variant(variant)
    if smoke:
        from examples.optical_flow.smoke import smoke_variant

        smoke_variant(chosen, console)
        return
    planned = cells(chosen, output, method=method)
    missing = [cell for cell in planned if cell.result() is None]  # refuses changed ones
    console.print(f"{variant}: {len(planned)} cells, {len(planned) - len(missing)} done before.")
    if missing:
        _run_all(missing, _data(chosen, data, output), loaders)


@app.command()
def report(variant: Name, output: Output = OUTPUT) -> None:
    """Write a variant's report and figures beside its results, and print it: paper, ours, difference, storage."""
    from examples.optical_flow.plots import draw_curves, draw_kept_share
    from examples.optical_flow.report import collect, markdown

    chosen = load_variant(variant)
    rows = collect(chosen, output)
    folder = output / TABLE / variant
    folder.mkdir(parents=True, exist_ok=True)
    draw_kept_share(rows, folder / "kept_share.png")
    draw_curves(chosen.title, rows, folder / "curves.png")
    page = markdown(chosen, rows, folder)
    (folder / "report.md").write_text(page)
    console.out(page, highlight=False)
    console.print(f"Written to {folder / 'report.md'}.")


def _data(variant: Variant, data: Path | None, output: Path) -> Path:
    """The folder of a variant's data, checked; generated scenes are written first."""
    if variant.scenes:
        from examples.optical_flow.moving_scenes import MovingScenes

        if data is not None:
            raise SettingsError(f"{variant.name} generates its data; leave --data out")
        data = output / "scenes"
        MovingScenes().write(data, variant.scenes)
        check_kitti(data, pairs=variant.scenes)
    elif data is None:
        raise SettingsError(f"--data is missing: the folder ROOT that holds\n{LAYOUT}\n\n{DOWNLOAD}")
    else:
        check_kitti(data)
    return data


def _run_all(missing: list[FlowCell], data: Path, loaders: int) -> None:
    """One cell after another, with a bar of steps."""
    from examples.optical_flow.running import run_cell

    with bars(console) as progress:
        for cell in missing:
            with bar(progress, cell.name, cell.settings.steps) as advance:
                result = run_cell(cell, data, workers=loaders, advance=advance)
            start, last = result["start"]["epe"], result["last"]["epe"]
            console.print(f"{cell.name}: EPE {start:.2f} -> {last:.2f}", highlight=False)
