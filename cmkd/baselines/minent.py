"""Entropy minimisation: makes the predictions on the target certain."""

from torch import Tensor

from cmkd.baselines.target_loss import TargetLoss
from cmkd.baselines.views import sample_entropy


def entropy_loss(logits: Tensor) -> Tensor:
    """Compute the mean Shannon entropy of the predictions, in nats.

    Args:
        logits: (B, C), floating point.

    Returns:
        A 0-d tensor, float32 or better.
    """
    return sample_entropy(logits).mean()


class MinEnt(TargetLoss):
    """Source cross entropy plus the entropy of the target's predictions.

    Grandvalet and Bengio, "Semi-supervised Learning by Entropy Minimization", NeurIPS 2004. That paper tunes
    the weight for each problem; 0.1 is our default.
    """

    term = "entropy"

    def __init__(self, *, weight: float = 0.1, label_smoothing: float = 0.1) -> None:
        """Set the weight of the entropy and the label smoothing of the source cross entropy."""
        super().__init__(weight=weight, label_smoothing=label_smoothing)

    def target_loss(self, logits: Tensor) -> Tensor:
        """Return the mean entropy of the predictions."""
        return entropy_loss(logits)
