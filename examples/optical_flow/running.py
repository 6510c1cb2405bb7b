"""Running a cell: load, train, save what the task must store, write the JSON file and the pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from examples.optical_flow.augmentation import SparseFlowAugmentation
from examples.optical_flow.batches import FlowBatches
from examples.optical_flow.evaluation import digest, evaluate, predict_all, shown_pairs
from examples.optical_flow.kitti import KittiPairs, split
from examples.optical_flow.methods import prepare
from examples.optical_flow.networks import load_network
from examples.optical_flow.pictures import draw_prediction
from examples.optical_flow.storage import store
from examples.optical_flow.tables import FlowCell
from examples.optical_flow.training import train

LIBRARIES = ("torch", "torchvision", "peft", "residual-sparse-training")


def run_cell(
    cell: FlowCell, root: Path, *, workers: int = 0, advance: Callable[[int], None] = lambda step: None
) -> dict[str, Any]:
    """Run a cell, or go on with it where it was stopped, and store its result.

    Args:
        cell: what to run.
        root: folder that holds `KittiFlow`.
        workers: processes that read and augment images ahead of time.
        advance: told the number of steps done.
    """
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    settings = cell.settings
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(cell.seed)
    network = load_network(settings.architecture, settings.weights).to(device).eval()
    if settings.weights is None:
        save_file(network.state_dict(), start_path(cell))

    pairs = KittiPairs(root)
    train_on, measure_on = split(len(pairs), settings.pairs)
    shown = shown_pairs(pairs, settings)
    before = predict_all(network, shown, updates=settings.test_updates)

    trainer = prepare(network, settings)
    network.to(device)  # LoRA's new weights
    progress = train(
        network,
        trainer,
        FlowBatches(
            pairs,
            train_on,
            SparseFlowAugmentation(settings.crop_height, settings.crop_width),
            batch_size=settings.batch_size,
            seed=cell.seed,
        ),
        lambda: evaluate(network, pairs, measure_on, updates=settings.test_updates),
        settings,
        checkpoint_path=cell.checkpoint_path,
        workers=workers,
        advance=advance,
    )
    file = cell.path.with_suffix(".safetensors")
    stored = store(network, trainer, file)
    after = predict_all(network, shown, updates=settings.test_updates)
    for position, pair in shown.items():
        draw_prediction(pair, before[position], after[position], cell.path.with_suffix(f".pair{position:03}.png"))

    outcome = {
        "start": progress.curve[0],
        "last": progress.curve[-1],
        "dsp": stored.dsp,
        "dsp_like_paper": stored.dsp_like_paper,
        "bytes": file.stat().st_size,
        "file": file.name,
        "flow_digest": digest(after.values()),
        "hours": progress.seconds / 3600,
        "curve": progress.curve,
    }
    result = cell.record(outcome, device, LIBRARIES)
    cell.store(result)
    return result


def start_path(cell: FlowCell) -> Path:
    """Where random starting weights lie, the base of RST's deltas; the rows of one seed share them."""
    return cell.path.parent.parent / f"start-seed{cell.seed}.safetensors"
