"""Cross-Modal Knowledge Distillation as a method of adaptation: source, target and strong views in one step (Eq. 1)."""

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
    """`L_cls(source) + L_cmkd(target)` (Eq. 1), with FixMatch (App. B) and partial sets (App. K) on request.

        clip = load_open_clip("ViT-B-16", pretrained="openai", class_names=names)
        student = Student(clip.encoder, TaskHead(clip.feature_dim, len(names)))
        objective = CMKD(clip.teacher, CMKDLoss("corrected"), fixmatch=FixMatch())

    The encoder sees the source's and the target's images in one batch, so its BatchNorm has to be frozen
    (`freeze_batchnorm`); the head sees each domain by itself. The ramp has the length given to `CMKDLoss`, whatever
    the run's.
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
        """Put the method together.

        Args:
            teacher: image features (B, D) to logits (B, C), frozen: a `TextTeacher` or a `PrototypeTeacher`.
            loss: Eq. 12; `CMKDLoss()` if left out.
            fixmatch: adds its loss on both views; the batches need strongly augmented images then.
            partial_set: estimates the target's classes now and then, and gives the losses its weights.
            label_smoothing: of the source's cross entropy (Sec. IV.A).

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
        """Every `PartialSet.refresh_every` iterations, or once an epoch of the target if that is None."""
        every = None if self.partial_set is None else self.partial_set.refresh_every
        return super().refresh_due(
            iteration, iterations_per_epoch=every or iterations_per_epoch, max_iterations=max_iterations
        )

    @torch.no_grad()
    def refresh(self, student: Student, target: Iterable[TargetBatch]) -> None:
        """Estimate which classes the target has, from the head's predictions; at the first call it has them all."""
        if self.partial_set is None:
            return
        if self.partial_set.never_updated:
            self.partial_set.update(None)
            return
        with eval_mode(student):
            predictions = torch.cat([student(batch.images).argmax(dim=1) for batch in target])
        self.partial_set.update(predictions)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield one phase. Raises `ValueError` if FixMatch takes part and the strong images are missing."""
        source, target, strong = self._features(student, batch)
        # The head's BatchNorm sees the source first: its running statistics, used in tests, end on the target.
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
        """Source, target and strong features from one call of the encoder; the last is empty without FixMatch."""
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
