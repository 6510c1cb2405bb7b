"""What MinEnt, BNM and MCC have in common: all they add to the source's cross entropy is a loss of target logits."""

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from cmkd.baselines.views import view_both_domains
from cmkd.objective import DomainBatch, Objective, Phase, Student


class TargetLoss(Objective):
    """Source cross entropy plus `weight` times `target_loss` of the target's logits."""

    term: str
    """The loss's name among `Phase.terms`."""

    def __init__(self, *, weight: float, label_smoothing: float = 0.1) -> None:
        """Choose the weight of the target's loss and the label smoothing of the source's cross entropy."""
        super().__init__()
        self.weight = weight
        self.label_smoothing = label_smoothing

    def target_loss(self, logits: Tensor) -> Tensor:
        """What the target's logits (B, C) add, 0-d."""
        raise NotImplementedError

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield the one phase, which trains everything."""
        views = view_both_domains(student, batch)
        classification = F.cross_entropy(views.source_logits, batch.source_labels, label_smoothing=self.label_smoothing)
        target = self.target_loss(views.target_logits)
        yield Phase(classification + self.weight * target, {"classification": classification, self.term: target})
