"""Checks on generated scenes that every row runs, RST learns, and start plus delta is the trained network bit for bit.

python -m examples.optical_flow.smoke
"""

import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from examples.optical_flow.evaluation import digest, predict_all, shown_pairs
from examples.optical_flow.kitti import KittiPairs
from examples.optical_flow.moving_scenes import MovingScenes
from examples.optical_flow.networks import load_network
from examples.optical_flow.running import run_cell, start_path
from examples.optical_flow.settings import Settings
from examples.optical_flow.tables import FlowCell, Variant, cells, load_variant
from rst.cli import main as rst_command

SCENES = 20
LEARNER = "RST geometric"
"""The row that trains for long enough to learn; the others show that they run."""


def smoke_variant(variant: Variant, console: Console) -> None:
    """Run every row of a variant, shortened; the first failure is raised."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        MovingScenes().write(root, SCENES)
        for cell in smoke_cells(variant, root / "results"):
            began = time.monotonic()
            result = run_cell(cell, root)
            facts = f"{time.monotonic() - began:.1f} s, {result['bytes']:,} bytes"
            if cell.row == LEARNER:
                check_learnt(result)
                facts += f", EPE {result['start']['epe']:.2f} -> {result['last']['epe']:.2f}, loss falls"
            if cell.settings.method in ("rst", "rst_bias"):
                check_merge(cell, root)
                facts += ", merged by `rst merge`: same predictions"
            console.print(f"{cell.name}: runs, {facts}", highlight=False)


def smoke_cells(variant: Variant, output: Path) -> list[FlowCell]:
    """A short cell on the tiny network for every row."""
    rows = {label: shorten(row, steps=64 if label == LEARNER else 2) for label, row in variant.rows.items()}
    return cells(replace(variant, rows=rows, scenes=SCENES), output)


def shorten(settings: Settings, *, steps: int) -> Settings:
    """Keep what a row is about, at the size and the learning rate of the generated scenes."""
    common = next(iter(load_variant("generated").rows.values()))
    return replace(
        common,
        method=settings.method,
        curve=settings.curve,
        steps=steps,
        evaluate_every=max(1, steps // 2),
    )


def check_learnt(result: dict[str, Any]) -> None:
    """Raise `AssertionError` unless the loss fell and the error is under that of the untrained start."""
    losses = [point["loss"] for point in result["curve"][1:]]
    if not losses[-1] < losses[0]:
        raise AssertionError(f"the loss did not fall: {losses}")
    if not result["last"]["epe"] < 0.8 * result["start"]["epe"]:
        raise AssertionError(f"EPE {result['start']['epe']:.2f} -> {result['last']['epe']:.2f}: not a fifth less")


def check_merge(cell: FlowCell, root: Path) -> None:
    """Merge the delta into the starting weights with the command line, and compare predictions with the run's own.

    Raises:
        AssertionError: the command fails, or a predicted flow differs in a bit.
    """
    merged = cell.path.with_suffix(".merged.safetensors")
    delta = cell.path.with_suffix(".safetensors")
    with redirect_stdout(StringIO()):
        refused = rst_command(["merge", str(start_path(cell)), str(delta), "-o", str(merged), "--force", "--json"])
    if refused:
        raise AssertionError(f"rst merge failed on {delta}")
    network = load_network(cell.settings.architecture, None)
    network.load_state_dict(load_file(merged))
    shown = shown_pairs(KittiPairs(root), cell.settings)
    flows = predict_all(network.eval(), shown, updates=cell.settings.test_updates)
    result = cell.result()
    if result is None or digest(flows.values()) != result["flow_digest"]:
        raise AssertionError(f"{merged} predicts something else than the trained network")


if __name__ == "__main__":
    torch.set_num_threads(1)  # the network is too small to share
    began = time.monotonic()
    smoke_variant(load_variant("generated"), Console(soft_wrap=True))
    sys.stdout.write(f"every row runs, {time.monotonic() - began:.0f} s\n")
