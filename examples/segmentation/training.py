"""The training loop of both tables: rows differ in the method, the trained weights, and whether RST is attached."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator

from cmkd.segmentation import DenseStudent
from examples.experiment.checkpoint import Checkpoint, RandomState
from examples.experiment.progress import Progress
from examples.segmentation.building import published
from examples.segmentation.domains import get_domain
from examples.segmentation.evaluation import Scores, score
from examples.segmentation.scene_batches import SceneBatches
from examples.segmentation.scene_objective import SceneObjective
from examples.segmentation.settings import BETAS, Settings
from rst import Linear, ResidualSparseTrainer, RSTConfig


def train(
    student: DenseStudent,
    objective: SceneObjective,
    batches: SceneBatches,
    root: Path,
    settings: Settings,
    accelerator: Accelerator,
    *,
    checkpoint_path: Path,
    workers: int = 0,
    advance: Callable[[int], None] = lambda iteration: None,
) -> tuple[Progress, ResidualSparseTrainer | None]:
    """Train the student in place, from the checkpoint if a run was stopped half way.

    Args:
        student: as `build_student` makes it.
        objective: the method.
        batches: of both domains.
        root: folder of the data, for scores on the target's validation split.
        settings: learning rates, length, thresholds.
        accelerator: device and mixed precision.
        checkpoint_path: written at every evaluation, so that a killed run goes on from there and ends the same.
        workers: processes that read scenes ahead of time; the result does not depend on them.
        advance: told the number of iterations done.

    Returns:
        The curve, and the RST trainer to export the delta from.
    """
    student.to(accelerator.device)
    objective.to(accelerator.device)
    optimizer = accelerator.prepare(build_optimizer(student, settings))
    trainer = None
    if settings.tuning == "rst":
        trainer = ResidualSparseTrainer(published(student), sparse_config(settings))
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
    if progress.iteration == 0:
        progress.add_scores(0, evaluate(student, root, settings, trainer, accelerator), seconds=0.0)
    began = time.monotonic() - progress.seconds
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    crops = batches.iterate(progress.iteration, settings.iterations, workers=workers)

    for iteration in range(progress.iteration, settings.iterations):
        set_learning_rates(optimizer, settings, iteration)
        student.train()
        batch = next(crops).to(accelerator.device)
        with accelerator.autocast():
            terms = objective.losses(student, batch, iteration=iteration)
        optimizer.zero_grad()
        accelerator.backward(torch.stack(list(terms.values())).sum())
        if settings.clip_norm:
            accelerator.clip_grad_norm_(trained, settings.clip_norm)
        optimizer.step()  # RST, where attached, puts weights that moved too little back here (Eq. 17)
        objective.after_step(student)
        progress.add_losses(terms)

        done = iteration + 1
        if trainer is not None and done == settings.iterations:
            trainer.select()  # what is scored last is what is exported
        if done % settings.evaluate_every == 0 or done == settings.iterations:
            scores = evaluate(student, root, settings, trainer, accelerator)
            progress.add_scores(done, scores, seconds=time.monotonic() - began)
            checkpoint.save(asdict(progress))
        advance(done)
    student.eval()
    return progress, trainer


def sparse_config(settings: Settings) -> RSTConfig:
    """RST with a threshold that grows on a straight line (App. J and L print its two ends, not the curve)."""
    return RSTConfig(
        threshold=Linear(*settings.threshold),
        every=settings.project_every,
        total_steps=settings.iterations,
        modules_to_save=None if settings.sparse_head else ["head"],
    )


def build_optimizer(student: DenseStudent, settings: Settings) -> torch.optim.AdamW:
    """AdamW with a group for the encoder, if it trains, and one for the head."""
    groups = [
        {"params": [weight for weight in part.parameters() if weight.requires_grad], "initial_lr": rate}
        for part, rate in ((student.encoder, settings.encoder_lr), (student.head, settings.head_lr))
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], betas=BETAS, weight_decay=settings.weight_decay
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, settings: Settings, iteration: int) -> None:
    """Linear warm-up times polynomial decay, as in DAFormer."""
    warm = min(1.0, (iteration + 1) / settings.warm_up) if settings.warm_up else 1.0
    decay = (1 - iteration / settings.iterations) ** settings.power
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * warm * decay


def evaluate(
    student: DenseStudent,
    root: Path,
    settings: Settings,
    trainer: ResidualSparseTrainer | None,
    accelerator: Accelerator,
) -> Scores:
    """Score the target's validation split, and see how sparse RST is."""
    target = get_domain(settings.target)
    student.eval()
    with accelerator.autocast():
        miou, per_class = score(student, target, target.scenes(root, "val"), settings.target_size, accelerator.device)
    if trainer is None:
        return Scores(miou, per_class)
    weights = sum(weight.numel() for weight in trainer.tracked.sparse.values())
    tau = trainer.config.threshold_at(min(1.0, trainer.steps / settings.iterations))
    return Scores(miou, per_class, threshold=tau, kept=trainer.count_changed() / weights)
