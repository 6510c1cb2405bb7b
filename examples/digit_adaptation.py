"""Adapting the small CLIP to the target domain: the task, the student, and one training loop for every method."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass

import open_clip
import torch
from torch import Tensor, nn

from cmkd import CMKD, CMKDLoss, DomainBatch, Objective, SourceOnly, Student, TaskHead, TextTeacher, freeze_batchnorm
from examples.handwritten_digits import HandwrittenDigits, load_handwritten_digits
from examples.rendered_digits import CLASSES, CaptionedDigits, prompt, render_digits
from examples.small_clip import tokenize
from rst import ResidualSparseTrainer, RSTConfig, SparseDelta


@dataclass(frozen=True)
class Method:
    """One row of the table: which loss trains, whether the encoder moves, and RST's share of it, if any."""

    name: str
    cmkd: bool = True
    train_encoder: bool = True
    ratio: float | None = None

    @property
    def file_name(self) -> str:
        """The name in lower case, hyphens between its words."""
        return "-".join(re.findall(r"[a-z0-9.]+", self.name.lower()))


@dataclass(frozen=True)
class Training:
    """The budget, the same for every method."""

    iterations: int = 200
    batch: int = 32  # of each domain
    encoder_lr: float = 5e-4
    head_lr: float = 1e-2


@dataclass(frozen=True)
class DigitTask:
    """Labelled source domain, unlabelled target domain, and CLIP's own view of both."""

    source: CaptionedDigits
    target: HandwrittenDigits
    teacher: TextTeacher


@torch.no_grad()
def digit_task(clip: open_clip.CLIP, source_images: int) -> DigitTask:
    """Render the source domain (another draw than pretraining's), load the target, embed the prompts."""
    text_features = clip.encode_text(tokenize([prompt(digit) for digit in range(CLASSES)]))
    teacher = TextTeacher(text_features, clip.logit_scale.exp())
    return DigitTask(render_digits(source_images, seed=1), load_handwritten_digits(), teacher)


def digit_student(encoder: nn.Module, generator: torch.Generator) -> Student:
    """A fresh head (App. D) on a copy of the pretrained encoder, so that every run starts from the same weights."""
    encoder = copy.deepcopy(encoder)
    freeze_batchnorm(encoder, affine=False)  # statistics stay those of pretraining
    return Student(encoder, TaskHead(encoder.output_dim, CLASSES, generator=generator))


def adapt(
    student: Student, method: Method, task: DigitTask, training: Training, generator: torch.Generator
) -> SparseDelta | None:
    """Train the student in place; with a ratio, return the delta that turns the pretrained encoder into it."""
    student.encoder.requires_grad_(method.train_encoder)
    optimizer = torch.optim.SGD(
        [
            {"params": student.encoder.parameters(), "lr": training.encoder_lr},
            {"params": student.head.parameters(), "lr": training.head_lr},
        ],
        momentum=0.9,
    )
    trainer = None
    if method.ratio is not None:
        config = RSTConfig(ratio=method.ratio, total_steps=training.iterations, modules_to_save=["head"])
        trainer = ResidualSparseTrainer(student, config)
        trainer.attach(optimizer)

    objective: Objective = SourceOnly()
    if method.cmkd:
        objective = CMKD(task.teacher, CMKDLoss(preset="official", max_iterations=training.iterations))
    student.train()
    for iteration in range(training.iterations):
        batch = draw_batch(task, training.batch, generator)
        for phase in objective.phases(student, batch, iteration=iteration, max_iterations=training.iterations):
            optimizer.zero_grad()
            phase.total.backward()
            optimizer.step()
    student.eval()
    return trainer.export() if trainer else None


def draw_batch(task: DigitTask, size: int, generator: torch.Generator) -> DomainBatch:
    """Draw `size` images of each domain, with replacement."""
    i = torch.randint(len(task.source.labels), (size,), generator=generator)
    j = torch.randint(len(task.target.unlabelled_images), (size,), generator=generator)
    return DomainBatch(task.source.images[i], task.source.labels[i], task.target.unlabelled_images[j], j)


@torch.no_grad()
def accuracy(classify: Callable[[Tensor], Tensor], target: HandwrittenDigits) -> float:
    """Per cent of the held-out target images whose largest logit is the right one."""
    right = classify(target.test_images).argmax(dim=1) == target.test_labels
    return 100 * right.float().mean().item()
