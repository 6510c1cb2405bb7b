"""Tiny runs on fake data that the tests share."""

from dataclasses import replace
from pathlib import Path

from examples.uda.benchmarks import get_benchmark
from examples.uda.cells import Cell
from examples.uda.fake_domains import FakeDomains
from examples.uda.running import run_cell
from examples.uda.settings import Settings
from examples.uda.tiny_backbones import load_tiny_backbone

TINY = Settings(
    benchmark="imageclef_da",
    method="cmkd",
    backbone="ViT-B-16",
    iterations=6,
    ramp_iterations=6,
    batch_size=8,
    encoder_lr=1e-2,
    head_lr=1e-1,
    threshold=1e-4,
    evaluate_every=2,
)


def write_data(folder: Path, benchmark: str = TINY.benchmark) -> Path:
    """Fake images of a benchmark's first task."""
    FakeDomains(images_per_class=3).write(benchmark, folder, domains=sorted(set(get_benchmark(benchmark).tasks[0])))
    return folder


def tiny_cell(output: Path, **changes: object) -> Cell:
    """A cell of a few iterations on the benchmark's first task."""
    settings = replace(TINY, **changes)  # type: ignore[arg-type]
    return Cell("test", "tiny", "row", settings, get_benchmark(settings.benchmark).tasks[0], 42, output)


def run(cell: Cell, data: Path, **options: object) -> dict[str, object]:
    """Run a cell with a tiny random backbone."""
    return run_cell(cell, data, load=load_tiny_backbone, **options)  # type: ignore[arg-type]
