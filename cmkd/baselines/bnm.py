"""Batch nuclear-norm maximisation: predictions on the target that are certain and diverse."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from cmkd.baselines.views import view_both_domains
from cmkd.log_view import log_view
from cmkd.objective import DomainBatch, Objective, Phase, Student


def nuclear_norm_loss(logits: Tensor) -> Tensor:
    """Negative nuclear norm of the batch's prediction matrix, divided by the batch size.

    Args:
        logits: (B, C), floating point.

    Returns:
        A 0-d tensor, float32 or better, between -sqrt(min(B, C) / B) and 0.
    """
    nuclear_norm: Tensor = torch.linalg.svdvals(log_view(logits).exp()).sum()
    return -nuclear_norm / len(logits)


class BNM(Objective):
    """Source cross entropy plus lambda times the negative nuclear norm on the target.

    Cui et al., "Towards Discriminability and Diversity: Batch Nuclear-norm Maximization under Label Insufficient
    Situations", CVPR 2020, with its lambda of 1.
    """

    def __init__(self, *, weight: float = 1.0, label_smoothing: float = 0.1) -> None:
        """Choose lambda and the label smoothing of the source's cross entropy."""
        super().__init__()
        self.weight = weight
        self.label_smoothing = label_smoothing

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield the one phase, which trains everything."""
        views = view_both_domains(student, batch)
        classification = F.cross_entropy(views.source_logits, batch.source_labels, label_smoothing=self.label_smoothing)
        transfer = nuclear_norm_loss(views.target_logits)
        yield Phase(
            classification + self.weight * transfer, {"classification": classification, "nuclear_norm": transfer}
        )
