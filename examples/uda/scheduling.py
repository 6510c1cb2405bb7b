"""Running many cells: one after another with a progress bar of iterations, or several at a time with one core each."""

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from examples.experiment.command_line import bar, bars
from examples.uda.backbones import load_backbone
from examples.uda.benchmarks import get_benchmark
from examples.uda.cells import Cell
from examples.uda.running import run_cell

RunCell = Callable[..., dict[str, Any]]


def run_all(
    cells: Sequence[Cell], root: Path, *, workers: int, loaders: int, console: Console, tensorboard: bool = False
) -> list[Cell]:
    """Run cells and print each one's accuracy.

    Args:
        cells: what to run.
        root: folder of the data.
        workers: cells at the same time.
        loaders: loading processes of each.
        console: for bars and results.
        tensorboard: whether each also writes event files.

    Returns:
        The cells that failed; their errors are printed, and the others go on.
    """
    run = partial(run_cell, root=root, workers=loaders, tensorboard=tensorboard)
    with bars(console) as progress:
        if workers > 1:
            _load_backbones(cells, root)
            return _side_by_side(cells, run, workers, progress)
        return _one_by_one(cells, run, progress)


def _one_by_one(cells: Sequence[Cell], run: RunCell, progress: Progress) -> list[Cell]:
    failed = []
    for cell in cells:
        with bar(progress, cell.name, cell.settings.iterations) as advance:
            try:
                _announce(cell, run(cell, advance=advance), progress.console)
            except Exception:
                failed.append(cell)
                _complain(cell, traceback.format_exc(), progress.console)
    return failed


def _load_backbones(cells: Sequence[Cell], root: Path) -> None:
    """Download, or pretrain, once instead of in every worker."""
    for settings in {(cell.settings.backbone, cell.settings.weights): cell.settings for cell in cells}.values():
        load_backbone(settings, get_benchmark(settings.benchmark).class_names(), root)


def _side_by_side(cells: Sequence[Cell], run: RunCell, workers: int, progress: Progress) -> list[Cell]:
    failed = []
    overall = progress.add_task("cells", total=len(cells))
    # spawned, because a forked copy of a process with CUDA or running threads is broken
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {pool.submit(run, cell): cell for cell in cells}
        for future in as_completed(running):
            cell, error = running[future], future.exception()
            if error is None:
                _announce(cell, future.result(), progress.console)
            else:
                failed.append(cell)
                _complain(cell, "".join(traceback.format_exception(error)), progress.console)
            progress.advance(overall)
    return failed


def _announce(cell: Cell, result: dict[str, object], console: Console) -> None:
    if result["status"] == "diverged":
        outcome = f"diverged: {result['error']}"
    else:
        outcome = f"last {result['last']:.1f} %, oracle {result['oracle']:.1f} %"
    console.print(f"{cell.name}: {outcome}", highlight=False)


def _complain(cell: Cell, error: str, console: Console) -> None:
    console.print(f"{cell.name} failed:\n{error}", markup=False, highlight=False)
