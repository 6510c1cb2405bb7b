"""The training loop of every table: methods differ in the objective, and whether RST is attached."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from cmkd import DomainBatch, Objective, Phase, Student
from examples.experiment.checkpoint import Checkpoint, RandomState
from examples.experiment.progress import Progress
from examples.uda.divergence import check_loss, check_weights
from examples.uda.evaluation import evaluate
from examples.uda.image_pass import ImagePass
from examples.uda.precision import warn_of_lost_steps
from examples.uda.processes import average_gradients, average_statistics
from examples.uda.settings import Settings
from examples.uda.stream import DomainBatches
from rst import ResidualSparseTrainer, RSTConfig

WARM_UP = 20
"""Iterations until SGD's momentum shows the typical step."""


@dataclass(frozen=True)
class Domains:
    """What the loop sees of the two domains.

    Attributes:
        batches: endless training batches of both.
        target: the whole target training set, without augmentation, for `Objective.refresh`.
        test: this process's share of the target test set.
        mean_per_class: whether the benchmark reports the mean of the classes' accuracies.
    """

    batches: DomainBatches
    target: ImagePass
    test: ImagePass
    mean_per_class: bool


def train(
    student: Student,
    objective: Objective,
    domains: Domains,
    settings: Settings,
    accelerator: Accelerator,
    *,
    sparse: bool,
    checkpoint_path: Path,
    workers: int = 0,
    advance: Callable[[int], None] = lambda iteration: None,
    observe: Callable[[dict[str, Any]], None] = lambda point: None,
) -> tuple[Progress, ResidualSparseTrainer | None]:
    """Train the student in place, from the checkpoint if a run was stopped half way.

    Args:
        student: pretrained encoder and fresh head. The encoder's BatchNorm is frozen already (`freeze_batchnorm`),
            and an encoder that must not move has `requires_grad` off.
        objective: the method.
        domains: the data.
        settings: learning rates, length, threshold.
        accelerator: device, mixed precision, processes.
        sparse: whether RST trains the encoder (Algorithm 1); the head is trained freely and saved whole.
        checkpoint_path: written at every evaluation, so that a killed run goes on from there and ends the same.
        workers: processes that read and augment images ahead of time; the result does not depend on them.
        advance: told the number of iterations done.
        observe: given each new point of the curve.

    Returns:
        The curve, and the RST trainer to export the delta from.

    Raises:
        DivergedError: if a loss or a weight is no longer finite.
    """
    student.to(accelerator.device)
    objective.to(accelerator.device)
    optimizer = accelerator.prepare(build_optimizer(student, objective, settings))
    trainer = None
    if sparse:
        trainer = ResidualSparseTrainer(student, RSTConfig(threshold=settings.threshold, modules_to_save=["head"]))
        trainer.attach(optimizer)

    checkpoint = Checkpoint(
        checkpoint_path,
        student=student,
        objective=objective,
        optimizer=optimizer,
        trainer=trainer,
        scaler=accelerator.scaler,
        random=RandomState(),
    )
    progress = Progress(**checkpoint.load())
    began = time.monotonic() - progress.seconds
    parts = {"encoder": student.encoder, "head": student.head, "objective": objective}
    epoch = -(-len(domains.batches.target) // settings.batch_size)
    batches = domains.batches.iterate(progress.iteration, settings.iterations, workers=workers)

    for iteration in range(progress.iteration, settings.iterations):
        if objective.refresh_due(iteration, iterations_per_epoch=epoch, max_iterations=settings.iterations):
            refresh(student, objective, domains.target, accelerator)
        set_learning_rates(optimizer, settings, iteration)
        student.train()
        objective.train()
        batch = to_device(next(batches), accelerator.device)

        phases = objective.phases(student, batch, iteration=iteration, max_iterations=settings.iterations)
        for phase in under_autocast(phases, accelerator):
            check_loss(phase.total, iteration, accelerator)
            optimizer.zero_grad()
            accelerator.backward(phase.total)
            keep_gradients(parts, phase.trains)
            average_gradients(optimizer, accelerator)
            optimizer.step()  # RST, where attached, puts weights that barely moved back here (Eq. 17)
            progress.add_losses(phase.terms)

        done = iteration + 1
        if done == WARM_UP:
            warn_of_lost_steps(optimizer, student.encoder)
        if done % settings.evaluate_every == 0 or done == settings.iterations:
            check_weights(student, done)
            average_statistics(student, accelerator)
            student.eval()
            scores = evaluate(student, domains.test, accelerator, mean_per_class=domains.mean_per_class)
            progress.add_scores(done, scores, seconds=time.monotonic() - began)
            observe(progress.curve[-1])
            if accelerator.is_main_process:
                checkpoint.save(asdict(progress))
            accelerator.wait_for_everyone()
        advance(done)
    student.eval()
    return progress, trainer


def build_optimizer(student: Student, objective: Objective, settings: Settings) -> torch.optim.Optimizer:
    """SGD or AdamW with one group for each part: encoder, head, the objective's own modules."""
    groups = [
        {"params": [weight for weight in part.parameters() if weight.requires_grad]}
        for part in (student.encoder, student.head, objective)
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.head_lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=settings.head_lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.resolved_preset().nesterov,
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, settings: Settings, iteration: int) -> None:
    """Constant, or `(1 + lr_gamma * iteration)^-0.75` times the initial ones, as in the released code."""
    decay = (1 + settings.lr_gamma * iteration) ** -0.75 if settings.resolved_preset().lr_decay else 1.0
    initial = (settings.encoder_lr, settings.head_lr, settings.head_lr)
    for group, rate in zip(optimizer.param_groups, initial, strict=True):
        group["lr"] = rate * decay


@torch.no_grad()
def refresh(student: Student, objective: Objective, target: ImagePass, accelerator: Accelerator) -> None:
    """Let the objective look at the whole target domain, as the student sees it at test time."""
    student.eval()
    objective.eval()
    with accelerator.autocast():
        objective.refresh(student, target)


def to_device(batch: DomainBatch, device: torch.device) -> DomainBatch:
    """The same batch on a device."""
    strong = batch.target_strong_images
    return DomainBatch(
        source_images=batch.source_images.to(device),
        source_labels=batch.source_labels.to(device),
        target_images=batch.target_images.to(device),
        target_positions=batch.target_positions.to(device),
        target_strong_images=None if strong is None else strong.to(device),
    )


def under_autocast(phases: Iterator[Phase], accelerator: Accelerator) -> Iterator[Phase]:
    """The same phases, each computed in mixed precision if that is on; the optimiser's steps between them are not."""
    while True:
        with accelerator.autocast():
            phase = next(phases, None)
        if phase is None:
            return
        yield phase


def keep_gradients(parts: dict[str, nn.Module], trained: tuple[str, ...]) -> None:
    """Drop the gradients of the parts that a phase does not train; an optimiser leaves a weight without one alone."""
    for name in parts.keys() - set(trained):
        for weight in parts[name].parameters():
            weight.grad = None
