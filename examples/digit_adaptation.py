"""Adapting the small CLIP to the target domain: the task, the model, and one training loop for every method."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmkd import CMKDLoss
from examples.handwritten_digits import HandwrittenDigits, load_handwritten_digits
from examples.rendered_digits import CLASSES, CaptionedDigits, prompt, render_digits
from examples.small_clip import tokenize
from rst import ResidualSparseTrainer, RSTConfig, SparseDelta


@dataclass(frozen=True)
class Method:
    """One row of the table: which loss trains, whether the encoder moves, and RST's threshold if there is one."""

    name: str
    cmkd: bool = True
    train_encoder: bool = True
    threshold: float | None = None

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
class Teacher:
    """CLIP's own view `p_g`: the class prompts' text features, computed once, and the temperature."""

    text_features: Tensor  # (classes, dim), length 1
    scale: Tensor

    def logits(self, image_features: Tensor) -> Tensor:
        """Scaled cosines (B, classes) of image features (B, dim); the gradient reaches the encoder."""
        return self.scale * F.normalize(image_features, dim=1) @ self.text_features.T


@dataclass(frozen=True)
class DigitTask:
    """Labelled source domain, unlabelled target domain, and the teacher."""

    source: CaptionedDigits
    target: HandwrittenDigits
    teacher: Teacher


class Batch(NamedTuple):
    """What one iteration sees of the two domains."""

    source_images: Tensor
    source_labels: Tensor
    target_images: Tensor


class DigitModel(nn.Module):
    """The image encoder f and the task head h: what is trained, scored and shipped."""

    def __init__(self, encoder: nn.Module, generator: torch.Generator) -> None:
        """Copy the pretrained encoder, so that every run starts from the same weights."""
        super().__init__()
        self.encoder = copy.deepcopy(encoder).eval()  # BatchNorm's statistics stay those of pretraining
        self.head = task_head(encoder.output_dim, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, classes) of images (B, 3, 32, 32)."""
        logits: Tensor = self.head(self.encoder(images))
        return logits


def task_head(dim: int, generator: torch.Generator) -> nn.Sequential:
    """BatchNorm, LayerNorm, Linear (App. D): small normal weights, BatchNorm's bias fixed at 0."""
    batch_norm, linear = nn.BatchNorm1d(dim), nn.Linear(dim, CLASSES)
    batch_norm.bias.requires_grad_(False)
    nn.init.normal_(linear.weight, std=0.001, generator=generator)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(batch_norm, nn.LayerNorm(dim), linear)


@torch.no_grad()
def digit_task(clip: open_clip.CLIP, source_images: int) -> DigitTask:
    """Render the source domain (another draw than pretraining's), load the target, embed the prompts."""
    text_features = clip.encode_text(tokenize([prompt(digit) for digit in range(CLASSES)]), normalize=True)
    teacher = Teacher(text_features, clip.logit_scale.exp())
    return DigitTask(render_digits(source_images, seed=1), load_handwritten_digits(), teacher)


def adapt(
    model: DigitModel, method: Method, task: DigitTask, training: Training, generator: torch.Generator
) -> SparseDelta | None:
    """Train the model in place; with a threshold, return the delta that turns the pretrained encoder into it."""
    model.encoder.requires_grad_(method.train_encoder)
    optimizer = torch.optim.SGD(
        [
            {"params": model.encoder.parameters(), "lr": training.encoder_lr},
            {"params": model.head.parameters(), "lr": training.head_lr},
        ],
        momentum=0.9,
    )
    trainer = None
    if method.threshold is not None:
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=method.threshold, modules_to_save=["head"]))
        trainer.attach(optimizer)

    cmkd_loss = CMKDLoss(preset="official", max_iterations=training.iterations) if method.cmkd else None
    model.head.train()
    for iteration in range(training.iterations):
        batch = _draw_batch(task, training.batch, generator)
        loss = _loss(model, task.teacher, batch, cmkd_loss, iteration)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.head.eval()
    return trainer.export() if trainer else None


def _draw_batch(task: DigitTask, size: int, generator: torch.Generator) -> Batch:
    i = torch.randint(len(task.source.labels), (size,), generator=generator)
    j = torch.randint(len(task.target.unlabelled_images), (size,), generator=generator)
    return Batch(task.source.images[i], task.source.labels[i], task.target.unlabelled_images[j])


def _loss(model: DigitModel, teacher: Teacher, batch: Batch, cmkd_loss: CMKDLoss | None, iteration: int) -> Tensor:
    """Cross entropy on the source domain, plus CMKD on the target domain (Eq. 1)."""
    if cmkd_loss is None:
        return F.cross_entropy(model(batch.source_images), batch.source_labels, label_smoothing=0.1)

    features = model.encoder(torch.cat([batch.source_images, batch.target_images]))
    source_features, target_features = features.split(len(batch.source_images))
    cross_entropy = F.cross_entropy(model.head(source_features), batch.source_labels, label_smoothing=0.1)
    terms = cmkd_loss(
        student_logits=model.head(target_features),
        teacher_logits=teacher.logits(target_features),
        source_teacher_logits=teacher.logits(source_features),
        source_labels=batch.source_labels,
        iteration=iteration,
    )
    return cross_entropy + terms.total


@torch.no_grad()
def accuracy(classify: Callable[[Tensor], Tensor], target: HandwrittenDigits) -> float:
    """Per cent of the held-out target images whose largest logit is the right one."""
    right = classify(target.test_images).argmax(dim=1) == target.test_labels
    return 100 * right.float().mean().item()
