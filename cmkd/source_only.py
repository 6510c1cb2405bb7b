"""The baseline: training on the labelled source domain only (Sec. IV.A)."""

from collections.abc import Iterator

from torch.nn import functional as F

from cmkd.objective import DomainBatch, Objective, Phase, Student


class SourceOnly(Objective):
    """Cross entropy on the source domain, with label smoothing."""

    def __init__(self, label_smoothing: float = 0.1, *, weight: float = 1.0) -> None:
        """Set the label smoothing (default: Sec. IV.A) and the weight of the loss (0.5 on partial sets, App. K)."""
        super().__init__()
        self.label_smoothing = label_smoothing
        self.weight = weight

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield one phase; the target images are not used."""
        logits = student(batch.source_images)
        loss = F.cross_entropy(logits, batch.source_labels, label_smoothing=self.label_smoothing)
        yield Phase(self.weight * loss, {"classification": loss.detach()})
