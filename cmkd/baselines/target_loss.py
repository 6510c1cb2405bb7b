"""What MinEnt, BNM and MCC have in common: they add a loss of the target logits to the source cross entropy."""

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from cmkd.baselines.views import view_both_domains
from cmkd.objective import DomainBatch, Objective, Phase, Student


class TargetLoss(Objective):
    """Source cross entropy plus `weight` times `target_loss` of the target logits."""

    term: str
    """Name of the loss in `Phase.terms`."""

    def __init__(self, *, weight: float, label_smoothing: float = 0.1) -> None:
        """Set the weight of the target loss and the label smoothing of the source cross entropy."""
        super().__init__()
        self.weight = weight
        self.label_smoothing = label_smoothing

    def target_loss(self, logits: Tensor) -> Tensor:
        """Return the loss of the target logits (B, C), 0-d."""
        raise NotImplementedError

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield a single phase, which trains every part."""
        views = view_both_domains(student, batch)
        classification = F.cross_entropy(views.source_logits, batch.source_labels, label_smoothing=self.label_smoothing)
        target = self.target_loss(views.target_logits)
        yield Phase(classification + self.weight * target, {"classification": classification, self.term: target})
