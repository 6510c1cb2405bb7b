"""The training loop of every row: rows differ in which weights have gradients, and whether RST is attached."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torchvision.models.optical_flow import RAFT

from examples.experiment.checkpoint import Checkpoint
from examples.optical_flow.augmentation import to_input
from examples.optical_flow.batches import FlowBatches
from examples.optical_flow.flow_metrics import FlowScores
from examples.optical_flow.networks import freeze_statistics
from examples.optical_flow.progress import Progress
from examples.optical_flow.sequence_loss import sequence_loss
from examples.optical_flow.settings import Settings
from rst import ResidualSparseTrainer

SPARE_STEPS = 100
"""MMFlow's one-cycle schedule is this much longer than the run, so the last learning rate is not 0."""


def train(
    network: RAFT,
    trainer: ResidualSparseTrainer | None,
    batches: FlowBatches,
    score: Callable[[], FlowScores],
    settings: Settings,
    *,
    checkpoint_path: Path,
    workers: int = 0,
    advance: Callable[[int], None] = lambda step: None,
) -> Progress:
    """Train the network in place, from the checkpoint if a run was stopped half way.

    Args:
        network: RAFT, prepared by `methods.prepare`, on its device.
        trainer: RST's for this network, not attached yet.
        batches: the data.
        score: measures the network as it is.
        settings: learning rate, length, clipping.
        checkpoint_path: written at every evaluation.
        workers: processes that read and augment ahead of time; the result does not depend on them.
        advance: told the number of steps done.

    Returns:
        The curve; its first point is the network before training.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = one_cycle(optimizer, settings)
    if trainer is not None:
        trainer.attach(optimizer)

    checkpoint = Checkpoint(checkpoint_path, network=network, optimizer=optimizer, schedule=schedule, trainer=trainer)
    progress = Progress(**checkpoint.load())
    began = time.monotonic() - progress.seconds
    if not progress.curve:
        progress.add_point(0, score(), kept=kept(trainer), seconds=time.monotonic() - began)

    for step, batch in enumerate(batches.iterate(progress.step, settings.steps, workers=workers), progress.step):
        freeze_statistics(network.train())
        first, second, flow, valid = (tensor.to(weights[0].device) for tensor in batch)
        predictions = network(to_input(first), to_input(second), num_flow_updates=settings.updates)
        loss = sequence_loss(predictions, flow, valid, gamma=settings.gamma)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, settings.clip_norm)  # RST-bias: over all weights, BitFit: over the biases
        optimizer.step()  # RST, where attached, puts back here what it does not keep
        schedule.step()
        progress.losses.append(loss.item())

        done = step + 1
        if done % settings.evaluate_every == 0 or done == settings.steps:
            progress.add_point(done, score(), kept=kept(trainer), seconds=time.monotonic() - began)
            checkpoint.save(asdict(progress))
        advance(done)
    network.eval()
    return progress


def one_cycle(optimizer: torch.optim.Optimizer, settings: Settings) -> torch.optim.lr_scheduler.OneCycleLR:
    """Straight up to the peak, then straight down."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=settings.lr,
        total_steps=settings.steps + SPARE_STEPS,
        pct_start=settings.warm_up,
        anneal_strategy="linear",
        cycle_momentum=False,
    )


def kept(trainer: ResidualSparseTrainer | None) -> float | None:
    """Share of all weights that differ from the start; None without RST."""
    if trainer is None:
        return None
    return trainer.count_changed() / sum(weight.numel() for weight in trainer.base.values())
