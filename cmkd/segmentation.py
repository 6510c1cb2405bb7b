"""CMKD for semantic segmentation (App. L): pseudo-labels of an EMA teacher, corrected by the pretrained head."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cmkd.alpha import kl_alpha
from cmkd.objective import Student
from cmkd.ramp import sigmoid_ramp

PixelLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps labels (B, H, W), int64, and weights (B, H, W) to a 0-d loss of the student's output."""


class DenseStudent(Student):
    """A student whose head predicts every pixel. Subclasses define how to read its output, and the network's own loss.

    `encoder` maps images (B, 3, H, W) to features, and `head` maps features to the network's own output; both may be of
    any type that the two agree on.
    """

    def log_view(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Return log-probabilities (B, C, *size), in float32 or better, of an output of `head`."""
        raise NotImplementedError

    def loss(self, output: Any, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the network's own loss of an output of `head`, 0-d.

        Args:
            output: the output of `head`.
            labels: (B, H, W), int64; 255 marks a pixel without a label.
            weights: (B, H, W), the weight of each pixel; all 1 by default. The loss is linear in them.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities (B, C, H, W) of images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        return self.log_view(self.head(self.encoder(images)), (height, width))


class EMATeacher(nn.Module):
    """The exponential moving average of a student's weights (Eq. 12 of App. L; mean teacher, Tarvainen 2017).

    It is always in eval mode and has no gradients. Its state, including the number of updates, is part of `state_dict`.
    """

    updates: Tensor

    def __init__(self, student: nn.Module, momentum: float = 0.99, *, warm_up: bool = False) -> None:
        """Start as a copy of the student.

        Args:
            student: the module to copy, of any kind.
            momentum: m of `teacher = m * teacher + (1 - m) * student`.
            warm_up: use `min(m, 1 - 1 / (t + 1))` at update t, counted from 0, so that the initial values of a new head
                are forgotten at once (mean teacher, DAFormer). App. L starts from trained weights and does not use it.

        Raises:
            ValueError: if `momentum` is outside [0, 1].
        """
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        self.momentum = momentum
        self.warm_up = warm_up
        self.model = deepcopy(student).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.eval()

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stay in eval mode, whatever `mode` is."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move towards the student, after its optimiser step. Buffers are copied.

        Raises:
            ValueError: if a parameter of the student has another name or shape than at the start; the message names it.
        """
        momentum = self.momentum
        if self.warm_up:
            momentum = min(momentum, 1 - 1 / (int(self.updates) + 1))
        mine, theirs = dict(self.model.named_parameters()), dict(student.named_parameters())
        for name in sorted(mine.keys() | theirs.keys()):
            if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape:
                raise ValueError(f"{name}: the student is not of the teacher's architecture")
            mine[name].lerp_(theirs[name], 1 - momentum)
        buffers = dict(student.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        self.updates += 1

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """Return the averaged student's output for the images."""
        return self.model(images)


class PixelViews(NamedTuple):
    """Pseudo-labels of a target batch: `task` and `distill` labels, int64, and alpha, each (B, H, W)."""

    task: Tensor
    distill: Tensor
    alpha: Tensor


class DenseCMKDTerms(NamedTuple):
    """The terms of App. L's Eq. 15, 0-d: `total = weight * ramp * (task + distill)`; both terms include alpha."""

    total: Tensor
    task: Tensor
    distill: Tensor


@torch.no_grad()
def pixel_views(log_teacher: Tensor, log_pretrained: Tensor) -> PixelViews:
    """Compute the pseudo-labels and alpha of every pixel (App. L, Eq. 11, 14, 16).

    Args:
        log_teacher: (B, C, H, W), log-probabilities of the EMA teacher.
        log_pretrained: (B, C, H, W), those of the pretrained head on the teacher's features.

    Returns:
        `task`, the teacher's classes; `distill`, the classes of the mean of the two probabilities; and
        `alpha = exp(-KL(teacher || pretrained))`.

    Raises:
        ValueError: if the shapes differ or are not (B, C, H, W).
    """
    if log_teacher.ndim != 4 or log_teacher.shape != log_pretrained.shape:
        raise ValueError(
            f"log_teacher {tuple(log_teacher.shape)} and log_pretrained {tuple(log_pretrained.shape)} "
            "must be (B, C, H, W) alike"
        )
    mean = log_teacher.exp() + log_pretrained.exp()
    return PixelViews(log_teacher.argmax(dim=1), mean.argmax(dim=1), kl_alpha(log_teacher, log_pretrained))


class DenseCMKD(nn.Module):
    """Cross-Modal Knowledge Distillation without a text encoder, for dense prediction (App. L).

    The pretrained head replaces the text view; it reads the EMA teacher's features. The loss is the network's own
    (`DenseStudent.loss`). Add the source loss yourself:

        cmkd = DenseCMKD(student)  # before training: it copies the head
        for ...:
            views = cmkd.views(target_images)
            output = student.head(student.encoder(augmented_images))
            terms = cmkd(lambda labels, weights: student.loss(output, labels, weights), views, iteration=t)
            (0.1 * source_loss + terms.total).backward()
            optimizer.step()
            cmkd.update(student)
    """

    def __init__(
        self, student: DenseStudent, *, momentum: float = 0.99, weight: float = 0.25, max_iterations: int = 10_000
    ) -> None:
        """Copy the student: it initialises the EMA teacher, and its head becomes the frozen pretrained head.

        Args:
            student: the student with its pretrained weights.
            momentum: m of the EMA teacher (App. L: 0.99).
            weight: lambda_cmkd, which the ramp multiplies (App. L: beta = 0.25).
            max_iterations: length of the ramp (Sec. IV.A: 10,000 whatever the length of the run).

        Raises:
            ValueError: if `max_iterations` is not positive or `momentum` is outside [0, 1].
        """
        super().__init__()
        if max_iterations <= 0:
            raise ValueError(f"max_iterations must be positive, got {max_iterations}")
        self.weight = weight
        self.max_iterations = max_iterations
        self.teacher = EMATeacher(student, momentum)
        self.pretrained_head = deepcopy(student.head).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "DenseCMKD":
        """Stay in eval mode, whatever `mode` is: nothing in this module is trained."""
        return super().train(False)

    @torch.no_grad()
    def views(self, images: Tensor) -> PixelViews:
        """Label unaugmented target images (B, 3, H, W) with the teacher and with the mean of both heads."""
        averaged = self.teacher.model
        assert isinstance(averaged, DenseStudent)
        height, width = images.shape[-2:]
        features = averaged.encoder(images)
        log_teacher = averaged.log_view(averaged.head(features), (height, width))
        log_pretrained = averaged.log_view(self.pretrained_head(features), (height, width))
        return pixel_views(log_teacher, log_pretrained)

    def forward(self, loss: PixelLoss, views: PixelViews, *, iteration: int) -> DenseCMKDTerms:
        """Compute Eq. 15 of App. L, with its weight and ramp (Eq. 17).

        Args:
            loss: the loss of the student's output on the target batch, given labels and weights; called twice.
            views: the views of the same pixels, moved or mixed like the images.
            iteration: number of completed iterations.
        """
        task = loss(views.task, views.alpha)
        distill = loss(views.distill, 1 - views.alpha)
        ramped = self.weight * sigmoid_ramp(iteration, self.max_iterations)
        return DenseCMKDTerms(ramped * (task + distill), task, distill)

    def update(self, student: DenseStudent) -> None:
        """Move the teacher towards the student, after its optimiser step (Eq. 12 of App. L)."""
        self.teacher.update(student)
