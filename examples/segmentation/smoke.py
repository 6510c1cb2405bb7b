"""Checks that every row runs: tiny networks on generated scenes; RST's rows also save their delta and merge it back.

The rows in `LONG` train until they have learned something, the others for a few iterations.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from examples.segmentation.artefact import store_base
from examples.segmentation.building import build_objective, build_student, published
from examples.segmentation.cells import Cell, cells
from examples.segmentation.classes import CLASSES
from examples.segmentation.domains import get_domain
from examples.segmentation.generated_scenes import SIZE, write_scenes
from examples.segmentation.mask2former import Mask2Former, save_tiny_mask2former
from examples.segmentation.pictures import choose_scenes, digest_views
from examples.segmentation.running import build_batches, run_cell
from examples.segmentation.settings import Settings
from examples.segmentation.tables import Table
from examples.segmentation.training import train
from rst import export
from rst.cli import main as rst_command

LONG = {"RST-config1": 80, "RST-config2": 80, "CMKD+RST": 32}
"""Iterations of the rows that must show learning."""

SHORT = 4

PRETRAINING = 120
"""Iterations of the tiny Mask2Former on generated Cityscapes, labels and all: where App. L starts."""


def smoke_table(table: Table, output: Path, console: Console, *, rows: Sequence[str] | None = None) -> list[Cell]:
    """Run a table's rows on generated scenes; the first failure is raised.

    Args:
        table: as configured for the real data.
        output: folder for scenes, networks and results.
        console: told what ran.
        rows: labels of those wanted; all if left out.

    Returns:
        The cells, finished.
    """
    root = output / "generated"
    if not root.exists():
        write_scenes(root)
    planned = smoke_cells(table, output, rows=rows)
    if any(cell.settings.network == "mask2former" for cell in planned):
        pretrain(planned[-1].settings, output, console)
    for cell in planned:
        if cell.result() is None:
            result = run_cell(cell, root)
            first, last = result["curve"][0]["miou"], result["last"]
            seconds = 3600 * result["hours"]
            console.print(f"{cell.name}: mIoU {first:.1f} -> {last:.1f}, {seconds:.1f} s", highlight=False)
            if cell.settings.tuning == "rst":
                console.print(ship(cell, root), highlight=False)
    return planned


def smoke_cells(table: Table, output: Path, *, rows: Sequence[str] | None = None) -> list[Cell]:
    """The table's cells with tiny networks; `pretrain` writes the Mask2Former that they load."""
    checkpoint = output / "mask2former"
    small = {row: shrink(settings, LONG.get(row, SHORT), checkpoint) for row, settings in table.rows.items()}
    return cells(replace(table, rows=small), output, rows=rows, seeds=1)


def shrink(settings: Settings, iterations: int, checkpoint: Path) -> Settings:
    """Keep what a row is about; its length, sizes and rates are those of tiny networks, which learn in minutes."""
    if settings.network == "mask2former":
        network = {"weights": str(checkpoint), "encoder_lr": 5e-4, "head_lr": 5e-4, "clip_norm": 1.0}
        scale = 20
    else:
        network = {"network": "deeplabv2-tiny", "weights": "none", "encoder_lr": 3e-3, "head_lr": 1e-2}
        scale = 1
    return replace(
        settings,
        **network,
        threshold=(scale * settings.threshold[0], scale * settings.threshold[1]),
        project_every=max(1, iterations // 24),
        iterations=iterations,
        evaluate_every=max(1, iterations // 6),
        warm_up=min(settings.warm_up, iterations // 10),
        ramp_iterations=iterations,
        crop=SIZE[1],
        source_size=SIZE,
        target_size=SIZE,
        min_pixels=40,
        ignore_rows=(0, 0),
        ema_momentum=0.95,
        pseudo_threshold=0.8,
    )


def pretrain(settings: Settings, output: Path, console: Console) -> None:
    """Train a tiny Mask2Former on the source as a checkpoint for other rows to load; once."""
    checkpoint, untrained = Path(settings.weights), output / "mask2former-untrained"
    if checkpoint.exists():
        return
    torch.manual_seed(0)
    save_tiny_mask2former(untrained, len(CLASSES))
    supervised = replace(
        settings,
        weights=str(untrained),
        method="source_only",
        tuning="full",
        iterations=PRETRAINING,
        evaluate_every=PRETRAINING,
        warm_up=10,
        encoder_lr=2e-3,
        head_lr=2e-3,
        rare_class_temperature=0.0,
    )
    set_seed(0)
    student = build_student(supervised)
    root, unfinished = output / "generated", output / "mask2former.checkpoint"
    progress, _ = train(
        student,
        build_objective(supervised, student),
        build_batches(supervised, root, seed=0),
        root,
        supervised,
        Accelerator(cpu=True),
        checkpoint_path=unfinished,
    )
    unfinished.unlink()
    assert isinstance(student, Mask2Former)
    student.published.save_pretrained(checkpoint)
    console.print(f"pretrained Mask2Former: mIoU {progress.curve[-1]['miou']:.1f} on the target", highlight=False)


def ship(cell: Cell, root: Path) -> str:
    """Merge the delta by `rst merge` into the network as it was, and hold its predictions against the trained one's.

    Raises:
        RuntimeError: if `rst merge` fails, or the predictions differ by one bit.
    """
    delta = cell.path.with_suffix(".safetensors")
    base, merged = (cell.path.with_suffix(f".{kind}.safetensors") for kind in ("base", "merged"))
    set_seed(cell.seed)
    student = build_student(cell.settings)
    store_base(student, base)
    if rst_command(["merge", str(base), str(delta), "--output", str(merged), "--force"]) != 0:
        raise RuntimeError(f"rst merge {base} {delta} failed")
    export(published(student), merged).apply(published(student))  # whatever the live tensors are called
    student.eval()
    target = get_domain(cell.settings.target)
    found = digest_views(student, choose_scenes(target, root), cell.settings.target_size, torch.device("cpu"))
    wanted = json.loads(cell.path.read_text())["digest"]
    if found != wanted:
        raise RuntimeError(f"{merged} predicts otherwise than the trained network: {found} is not {wanted}")
    return f"  rst merge: {delta.stat().st_size:,} bytes into {base.stat().st_size:,}, predictions bit-identical"
