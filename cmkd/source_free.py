"""CMKD without source images: a model trained on the source adapts with the target terms alone."""

from collections.abc import Iterator

from torch import nn

from cmkd.loss import CMKDLoss
from cmkd.objective import DomainBatch, Objective, Phase, Student


class SourceFreeCMKD(Objective):
    """The task and distillation terms of Eq. 12 on the target; no source data is used.

        student = Student(encoder, head)  # as trained on the source
        objective = SourceFreeCMKD(copy.deepcopy(head).requires_grad_(False))

    Without a text encoder, the head as trained on the source acts as the teacher and reads the current features, as the
    pretrained head does in App. L. The paper has no source-free setting; this is its loss without the source terms.
    """

    def __init__(self, teacher: nn.Module, loss: CMKDLoss | None = None) -> None:
        """Create the objective.

        Args:
            teacher: maps features (B, D) to logits (B, C); frozen. The pretrained head, or a `TextTeacher`.
            loss: a loss with the terms "task" and "distill"; `CMKDLoss(terms=("task", "distill"))` by default.

        Raises:
            ValueError: if the teacher has a trainable parameter, or if the loss has the regulariser, which needs a
                source.
        """
        super().__init__()
        for name, parameter in teacher.named_parameters():
            if parameter.requires_grad:
                raise ValueError(f"teacher must be frozen, but its {name} {tuple(parameter.shape)} requires a gradient")
        self.teacher = teacher
        self.loss = CMKDLoss(terms=("task", "distill")) if loss is None else loss
        if "regularization" in self.loss.terms:
            raise ValueError("loss.terms has the regularization, whose first half needs source images; leave it out")

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield one phase, which trains the encoder and the head."""
        features = student.encoder(batch.target_images)
        terms = self.loss(
            student_logits=student.head(features), teacher_logits=self.teacher(features), iteration=iteration
        )
        yield Phase(terms.total, {"task": terms.task.detach(), "distill": terms.distill.detach()}, ("encoder", "head"))
