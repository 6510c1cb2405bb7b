"""Batch nuclear-norm maximisation: predictions on the target that are certain and diverse."""

import torch
from torch import Tensor

from cmkd.baselines.target_loss import TargetLoss
from cmkd.log_view import log_view


def nuclear_norm_loss(logits: Tensor) -> Tensor:
    """Negative nuclear norm of the batch's prediction matrix, divided by the batch size.

    Args:
        logits: (B, C), floating point.

    Returns:
        A 0-d tensor, float32 or better, between -sqrt(min(B, C) / B) and 0.
    """
    nuclear_norm: Tensor = torch.linalg.svdvals(log_view(logits).exp()).sum()
    return -nuclear_norm / len(logits)


class BNM(TargetLoss):
    """Source cross entropy plus lambda times the negative nuclear norm on the target.

    Cui et al., "Towards Discriminability and Diversity: Batch Nuclear-norm Maximization under Label Insufficient
    Situations", CVPR 2020, with its lambda of 1.
    """

    term = "nuclear_norm"

    def __init__(self, *, weight: float = 1.0, label_smoothing: float = 0.1) -> None:
        """Choose lambda and the label smoothing of the source's cross entropy."""
        super().__init__(weight=weight, label_smoothing=label_smoothing)

    def target_loss(self, logits: Tensor) -> Tensor:
        """The predictions' negative nuclear norm."""
        return nuclear_norm_loss(logits)
