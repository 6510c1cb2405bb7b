"""CMKD's loss on a target batch (Eq. 12): self-training on the student's view, guided by the teacher's."""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cmkd.alpha import constant_alpha, entropy_alpha, kl_alpha
from cmkd.distillation import kl_distillation
from cmkd.gini import gini_balanced, gini_mean
from cmkd.log_view import log_view
from cmkd.mixed_view import mix_views
from cmkd.presets import PRESETS, Preset
from cmkd.ramp import sigmoid_ramp
from cmkd.regularization import teacher_regularization

TERMS = ("task", "distill", "regularization")
"""The terms of Eq. 12, which Table IX ablates."""


class CMKDTerms(NamedTuple):
    """The terms of Eq. 12 as 0-d tensors: `total = lambda1 * ramp * (task + distill) + regularization`.

    Attributes:
        total: what to call `backward` on, together with the source cross entropy.
        task: Gini impurity of the student's view, weighted by alpha (Eq. 4).
        distill: Gini impurity of the mixed view, weighted by 1 - alpha (Eq. 7), or the classic term (App. Table V).
        regularization: keeps the teacher's view from drifting (Eq. 13), lambda2 and lambda3 included.

    A term that `CMKDLoss(terms=...)` leaves out is 0.
    """

    total: Tensor
    task: Tensor
    distill: Tensor
    regularization: Tensor


class CMKDLoss(nn.Module):
    """Cross-Modal Knowledge Distillation on a batch of the unlabelled target domain (Sec. III.B, Eq. 12).

    The student's view is the logits of the task head, `h(f(x))`; the teacher's is CLIP's own,
    `s * cos(f(x), g(prompts))`, of the same images (the features below have length 1). Add the source cross entropy
    (Eq. 1) yourself:

        loss = CMKDLoss(preset="official", max_iterations=10_000)
        terms = loss(
            student_logits=head(target_features),
            teacher_logits=scale * target_features @ text_features.T,
            source_teacher_logits=scale * source_features @ text_features.T,
            source_labels=source_labels,
            iteration=t,
        )
        (source_cross_entropy + terms.total).backward()
    """

    def __init__(
        self,
        preset: str | Preset = "official",
        *,
        max_iterations: int = 10_000,
        lambda1: float = 0.25,
        lambda2: float = 0.1,
        lambda3: float = 0.025,
        terms: Collection[str] = TERMS,
    ) -> None:
        """Choose the preset and the weights of the terms; the default weights are the paper's (Sec. IV.A).

        Args:
            preset: "paper", "official" or "corrected", or a `Preset` of your own.
            max_iterations: length of the ramp of lambda1 and lambda3.
            lambda1: weight of the task and distillation terms, multiplied by the ramp.
            lambda2: weight of the teacher's cross entropy on the source domain, which is constant.
            lambda3: weight of the teacher's Gini impurity on the target domain, multiplied by the ramp.
            terms: which of `TERMS` to use (Table IX). Alpha weights each term whether or not the others are used.

        Raises:
            ValueError: if the name of the preset or of a term is unknown, or if `max_iterations` is not positive.
        """
        super().__init__()
        if isinstance(preset, str) and preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)} or a Preset, got {preset!r}")
        if max_iterations <= 0:
            raise ValueError(f"max_iterations must be positive, got {max_iterations}")
        if not set(terms) <= set(TERMS):
            raise ValueError(f"terms must be among {', '.join(TERMS)}, got {', '.join(map(repr, terms))}")
        self.preset = PRESETS[preset] if isinstance(preset, str) else preset
        self.max_iterations = max_iterations
        self.lambda1 = lambda1
        self.lambda2 = lambda2
        self.lambda3 = lambda3
        self.terms = frozenset(terms)

    def forward(
        self,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor,
        iteration: int,
        source_teacher_logits: Tensor | None = None,
        source_labels: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> CMKDTerms:
        """Compute Eq. 12 and its terms, in float32 or better whatever the dtype of the logits.

        Args:
            student_logits: (B, C), from the task head on the target batch.
            teacher_logits: (B, C), CLIP's scaled similarities on the target batch. Only the regulariser sends a
                gradient through them.
            iteration: number of completed iterations.
            source_teacher_logits: (S, C), the same on the source batch. Only the regulariser needs it and the labels.
            source_labels: (S,), int64 class indices of the source batch.
            classes: (C,), bool: the classes of the target; all by default. The columns of the other classes are removed
                from the views, which are not renormalised (App. Eq. 9). Alpha and the source term use every class, as
                in the released code.

        Raises:
            ValueError: if an argument's shape or dtype is not the one given above, naming the argument.
        """
        _check_logits("student_logits", student_logits)
        _check_shape("teacher_logits", teacher_logits, like=student_logits)
        _check_classes(classes, student_logits.shape[1])

        log_student = log_view(student_logits)
        log_teacher = log_view(teacher_logits)
        alpha = self._alpha(log_student, log_teacher)
        if classes is not None:
            log_student, log_teacher = log_student[:, classes], log_teacher[:, classes]
        warm = sigmoid_ramp(iteration, self.max_iterations, clip=self.preset.ramp_clip)

        nothing = log_student.new_zeros(())
        task = self._task(log_student, alpha) if "task" in self.terms else nothing
        distill = self._distill(log_student, log_teacher, 1 - alpha) if "distill" in self.terms else nothing
        regularization = nothing
        if "regularization" in self.terms:
            source_teacher_logits, labels = _checked_source(source_teacher_logits, source_labels, student_logits)
            regularization = self._regularization(log_view(source_teacher_logits), labels, log_teacher, warm)
        total = self.lambda1 * warm * (task + distill) + regularization
        return CMKDTerms(total, task, distill, regularization)

    def _task(self, log_student: Tensor, weights: Tensor) -> Tensor:
        return self._gini(log_student.exp(), weights)

    def _distill(self, log_student: Tensor, log_teacher: Tensor, weights: Tensor) -> Tensor:
        if self.preset.distill == "kl":
            return kl_distillation(log_student, log_teacher, weights)
        return self._gini(mix_views(log_student.exp(), log_teacher.exp()), weights)

    def _regularization(self, log_source: Tensor, labels: Tensor, log_teacher: Tensor, warm: float) -> Tensor:
        lambda3 = self.lambda3 * warm
        return teacher_regularization(
            log_source, labels, log_teacher.exp(), gini=self._gini, lambda2=self.lambda2, lambda3=lambda3
        )

    def _gini(self, view: Tensor, weights: Tensor | None = None) -> Tensor:
        return gini_balanced(view, weights) if self.preset.gini == "balanced" else gini_mean(view, weights)

    def _alpha(self, log_student: Tensor, log_teacher: Tensor) -> Tensor:
        if self.preset.alpha == "kl_student_teacher":
            return kl_alpha(log_student, log_teacher)
        if self.preset.alpha == "kl_teacher_student":
            return kl_alpha(log_teacher, log_student)
        if self.preset.alpha == "entropy":
            return entropy_alpha(log_student, self.preset.entropy_epsilon)
        return constant_alpha(log_student)


def _check_logits(name: str, logits: Tensor) -> None:
    if logits.ndim != 2 or logits.numel() == 0:
        raise ValueError(f"{name} must be a non-empty (batch, classes) tensor, got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {logits.dtype}")


def _check_shape(name: str, logits: Tensor, *, like: Tensor) -> None:
    _check_logits(name, logits)
    if logits.shape != like.shape:
        raise ValueError(f"{name} {tuple(logits.shape)} must have the shape of student_logits {tuple(like.shape)}")


def _checked_source(logits: Tensor | None, labels: Tensor | None, student_logits: Tensor) -> tuple[Tensor, Tensor]:
    if logits is None or labels is None:
        missing = "source_teacher_logits" if logits is None else "source_labels"
        raise ValueError(f"{missing} must be given: the loss has the regularization, see terms")
    _check_logits("source_teacher_logits", logits)
    classes = student_logits.shape[1]
    if logits.shape[1] != classes:
        raise ValueError(f"source_teacher_logits {tuple(logits.shape)} must have student_logits' {classes} classes")
    if labels.shape != logits.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"source_labels must be int64 of shape ({logits.shape[0]},) to fit source_teacher_logits, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    return logits, labels


def _check_classes(classes: Tensor | None, count: int) -> None:
    if classes is None:
        return
    if classes.shape != (count,) or classes.dtype != torch.bool or not classes.any():
        raise ValueError(
            f"classes must be bool of shape ({count},) with one True at least, "
            f"got {classes.dtype} of shape {tuple(classes.shape)}"
        )
