"""Checks that every row of every table runs: a few iterations of tiny random models on miniature fake data.

python -m examples.uda.smoke
"""

import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from examples.uda.benchmarks import get_benchmark
from examples.uda.cells import Cell, cells
from examples.uda.fake_domains import FakeDomains
from examples.uda.running import run_cell
from examples.uda.settings import Settings
from examples.uda.tables import Variant, table_names, variants
from examples.uda.tiny_backbones import load_tiny_backbone


def smoke_table(chosen: Sequence[Variant], console: Console) -> None:
    """Run every row of the variants on one task; the first failure is raised."""
    for variant in chosen:
        with tempfile.TemporaryDirectory() as folder:
            for cell in smoke_cells(variant, Path(folder)):
                began = time.monotonic()
                result = run_cell(cell, Path(folder), load=load_tiny_backbone)
                if result["status"] == "diverged":
                    raise RuntimeError(f"{cell.name} diverged: {result['error']}")
                seconds = time.monotonic() - began
                console.print(f"{cell.name}: runs, {seconds:.1f} s, {result['bytes']:,} bytes", highlight=False)


def smoke_cells(variant: Variant, folder: Path) -> list[Cell]:
    """Write fake data for the variant's first task into the folder, and list a cell for each row."""
    name = next(iter(variant.rows.values())).benchmark
    benchmark = get_benchmark(name)
    task = benchmark.tasks[0]
    fake = FakeDomains(images_per_class=1 if len(benchmark.classes) > 100 else 4)
    fake.write(name, folder, domains=sorted(set(task)))
    benchmark.check(folder, domains=task, counts=False)
    rows = {label: shorten(settings) for label, settings in variant.rows.items()}
    return cells(replace(variant, rows=rows), folder / "results", tasks=[task], seeds=1)


def shorten(settings: Settings) -> Settings:
    """Keep what a row is about, but for its length and its learning rates, which random weights need larger."""
    threshold = 1e-4 * settings.threshold / 1e-6
    return replace(
        settings,
        iterations=4,
        ramp_iterations=4,
        batch_size=8,
        evaluate_every=2,
        encoder_lr=1e-2,
        head_lr=1e-1,
        threshold=min(threshold, 1e-3),
        mixed_precision="no",  # fp16 needs a GPU
    )


if __name__ == "__main__":
    torch.set_num_threads(1)  # the models are too small to share
    logging.disable(logging.WARNING)  # open_clip says of every tiny model that its weights are random
    began = time.monotonic()
    for name in table_names():
        smoke_table(variants(name), Console(soft_wrap=True))
    sys.stdout.write(f"every row of {len(table_names())} tables runs, {time.monotonic() - began:.0f} s\n")
