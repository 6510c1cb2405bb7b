"""Entropy minimisation: certain predictions on the target."""

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from cmkd.baselines.views import sample_entropy, view_both_domains
from cmkd.objective import DomainBatch, Objective, Phase, Student


def entropy_loss(logits: Tensor) -> Tensor:
    """Mean Shannon entropy of the predictions, in nats.

    Args:
        logits: (B, C), floating point.

    Returns:
        A 0-d tensor, float32 or better.
    """
    return sample_entropy(logits).mean()


class MinEnt(Objective):
    """Source cross entropy plus the entropy of the target's predictions.

    Grandvalet and Bengio, "Semi-supervised Learning by Entropy Minimization", NeurIPS 2004. That paper tunes
    the weight for each problem; 0.1 is our default.
    """

    def __init__(self, *, weight: float = 0.1, label_smoothing: float = 0.1) -> None:
        """Choose the weight of the entropy and the label smoothing of the source's cross entropy."""
        super().__init__()
        self.weight = weight
        self.label_smoothing = label_smoothing

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield the one phase, which trains everything."""
        views = view_both_domains(student, batch)
        classification = F.cross_entropy(views.source_logits, batch.source_labels, label_smoothing=self.label_smoothing)
        entropy = entropy_loss(views.target_logits)
        yield Phase(classification + self.weight * entropy, {"classification": classification, "entropy": entropy})
