"""Batch nuclear-norm maximisation: makes the predictions on the target certain and diverse."""

import torch
from torch import Tensor

from cmkd.baselines.target_loss import TargetLoss
from cmkd.log_view import log_view


def nuclear_norm_loss(logits: Tensor) -> Tensor:
    """Compute the negative mean singular value of the batch's prediction matrix, as in the released code.

    This is the nuclear norm divided by min(B, C). The paper divides by B, which is the same up to B = C; for larger
    batches, 36 images of 12 classes for example, its loss is B / C times smaller.

    Args:
        logits: (B, C), floating point.

    Returns:
        A 0-d tensor, float32 or better, between -sqrt(B / min(B, C)) and 0.
    """
    mean: Tensor = torch.linalg.svdvals(log_view(logits).exp()).mean()
    return -mean


def fast_nuclear_norm_loss(logits: Tensor) -> Tensor:
    """Compute Fast BNM, which replaces the singular values by the min(B, C) largest column norms of the predictions.

    Cui et al., "Fast Batch Nuclear-norm Maximization and Minimization for Robust Domain Adaptation", 2021. It equals
    `nuclear_norm_loss` if the columns are orthogonal, as those of one-hot predictions are, and it needs no SVD.

    Args:
        logits: (B, C), floating point.

    Returns:
        A 0-d tensor, float32 or better, between -sqrt(B / min(B, C)) and 0.
    """
    lengths = log_view(logits).exp().norm(dim=0)
    longest: Tensor = lengths.topk(min(logits.shape)).values
    return -longest.mean()


class BNM(TargetLoss):
    """Source cross entropy plus lambda times the negative nuclear norm on the target.

    Cui et al., "Towards Discriminability and Diversity: Batch Nuclear-norm Maximization under Label Insufficient
    Situations", CVPR 2020, with its lambda of 1.
    """

    term = "nuclear_norm"

    def __init__(self, *, weight: float = 1.0, fast: bool = False, label_smoothing: float = 0.1) -> None:
        """Set lambda, whether to use Fast BNM, and the label smoothing of the source cross entropy."""
        super().__init__(weight=weight, label_smoothing=label_smoothing)
        self.fast = fast

    def target_loss(self, logits: Tensor) -> Tensor:
        """Return the negative nuclear norm of the predictions, or Fast BNM's estimate of it."""
        return fast_nuclear_norm_loss(logits) if self.fast else nuclear_norm_loss(logits)
