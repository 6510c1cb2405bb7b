"""Cross-Modal Knowledge Distillation as an objective: source, target and strong views in one step (Eq. 1)."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmkd.evaluation import eval_mode
from cmkd.fixmatch import FixMatch
from cmkd.loss import CMKDLoss
from cmkd.objective import DomainBatch, Objective, Phase, Student, TargetBatch
from cmkd.partial import PartialSet


class CMKD(Objective):
    """`L_cls(source) + L_cmkd(target)` (Eq. 1), optionally with FixMatch (App. B) and partial-set adaptation (App. K).

        clip = load_open_clip("ViT-B-16", pretrained="openai", class_names=names)
        student = Student(clip.encoder, TaskHead(clip.feature_dim, len(names)))
        objective = CMKD(clip.teacher, CMKDLoss("corrected"), fixmatch=FixMatch())

    The encoder processes source and target images in one batch, so freeze its BatchNorm layers first
    (`freeze_batchnorm`); the head processes each domain separately. The length of the ramp is the one given to
    `CMKDLoss`, not the length of the run.
    """

    def __init__(
        self,
        teacher: nn.Module,
        loss: CMKDLoss | None = None,
        *,
        fixmatch: FixMatch | None = None,
        partial_set: PartialSet | None = None,
        label_smoothing: float = 0.1,
    ) -> None:
        """Create the objective.

        Args:
            teacher: maps image features (B, D) to logits (B, C); frozen. A `TextTeacher` or a `PrototypeTeacher`.
            loss: the loss of Eq. 12; `CMKDLoss()` by default.
            fixmatch: if given, its loss is added on both views, and the batches must have strongly augmented images.
            partial_set: if given, estimates which classes the target has and sets the weights of the losses.
            label_smoothing: label smoothing of the source cross entropy (Sec. IV.A).

        Raises:
            ValueError: if the teacher has a trainable parameter.
        """
        super().__init__()
        for name, parameter in teacher.named_parameters():
            if parameter.requires_grad:
                raise ValueError(f"teacher must be frozen, but its {name} {tuple(parameter.shape)} requires a gradient")
        self.teacher = teacher
        self.loss = CMKDLoss() if loss is None else loss
        self.fixmatch = fixmatch
        self.partial_set = partial_set
        self.label_smoothing = label_smoothing
        self.needs_strong_images = fixmatch is not None
        self.needs_target_pass = partial_set is not None

    def refresh_due(self, iteration: int, *, iterations_per_epoch: int, max_iterations: int) -> bool:
        """Return whether to refresh: every `PartialSet.refresh_every` iterations, or once per target epoch if None."""
        every = None if self.partial_set is None else self.partial_set.refresh_every
        return super().refresh_due(
            iteration, iterations_per_epoch=every or iterations_per_epoch, max_iterations=max_iterations
        )

    @torch.no_grad()
    def refresh(self, student: Student, target: Iterable[TargetBatch]) -> None:
        """Estimate the target's classes from the head's predictions; the first call keeps all classes."""
        if self.partial_set is None:
            return
        if self.partial_set.never_updated:
            self.partial_set.update(None)
            return
        with eval_mode(student):
            predictions = torch.cat([student(batch.images).argmax(dim=1) for batch in target])
        self.partial_set.update(predictions)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield one phase. Raises `ValueError` if FixMatch is used and the strongly augmented images are missing."""
        source, target, strong = self._features(student, batch)
        # Source first: the running statistics of the head's BatchNorm, used in eval mode, are updated with the target
        # last.
        source_logits, target_logits, teacher_logits = student.head(source), student.head(target), self.teacher(target)
        classes = None if self.partial_set is None else self.partial_set.kept

        classification = F.cross_entropy(source_logits, batch.source_labels, label_smoothing=self.label_smoothing)
        cmkd = self.loss(
            student_logits=target_logits,
            teacher_logits=teacher_logits,
            source_teacher_logits=self.teacher(source),
            source_labels=batch.source_labels,
            iteration=iteration,
            classes=classes,
        )
        transfer = cmkd.total
        terms = {"classification": classification, **cmkd._asdict()}
        del terms["total"]
        if self.fixmatch is not None:
            fixmatch = self.fixmatch(
                student_weak=target_logits,
                student_strong=student.head(strong),
                teacher_weak=teacher_logits,
                teacher_strong=self.teacher(strong),
                classes=classes,
            )
            transfer = transfer + fixmatch.total
            terms |= {"fixmatch_student": fixmatch.student, "fixmatch_teacher": fixmatch.teacher}
        yield Phase(self._total(classification, transfer), {name: term.detach() for name, term in terms.items()})

    def _features(self, student: Student, batch: DomainBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return source, target and strong features from one encoder call; the last is empty without FixMatch."""
        images = [batch.source_images, batch.target_images]
        if self.fixmatch is not None:
            if batch.target_strong_images is None:
                raise ValueError("batch.target_strong_images is None, but FixMatch needs it")
            images.append(batch.target_strong_images)
        features: Tensor = student.encoder(torch.cat(images))
        source, target, strong = features.tensor_split([len(images[0]), len(images[0]) + len(images[1])])
        return source, target, strong

    def _total(self, classification: Tensor, transfer: Tensor) -> Tensor:
        if self.partial_set is None:
            return classification + transfer
        return self.partial_set.classification_weight * classification + self.partial_set.transfer_weight * transfer
