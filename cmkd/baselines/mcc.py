"""Minimum class confusion: target predictions that mix up few pairs of classes."""

from torch import Tensor

from cmkd.baselines.target_loss import TargetLoss
from cmkd.baselines.views import sample_entropy
from cmkd.gini import MIN_CLASS_MASS
from cmkd.log_view import log_view


def class_confusion_loss(logits: Tensor, temperature: float = 2.5) -> Tensor:
    """Mean off-diagonal of the normalised class correlation.

    With `Y = softmax(logits / temperature)` and samples' weights `W_b = 1 + exp(-H(Y_b))` that pass no gradient, the
    correlation of two classes is `C_ij = sum_b W_b Y_bi Y_bj`. Each row of it is made to sum to 1, for which the
    weights' scale, B on the whole in the paper, is of no matter. The loss is what lies off the diagonal, divided by
    the number of classes.

    Args:
        logits: (B, C), floating point.
        temperature: what the logits are divided by.

    Returns:
        A 0-d tensor in [0, 1), float32 or better.
    """
    softened = logits / temperature
    p = log_view(softened).exp()
    weights = 1 + (-sample_entropy(softened).detach()).exp()
    # A sum of products instead of a matrix product: autocast would run that in half precision.
    correlation = ((weights[:, None] * p)[:, :, None] * p[:, None, :]).sum(dim=0)
    normalised = correlation / correlation.sum(dim=1, keepdim=True).clamp(min=MIN_CLASS_MASS)
    return (normalised.sum() - normalised.trace()) / logits.shape[1]


class MCC(TargetLoss):
    """Source cross entropy plus mu times the target's class confusion.

    Jin et al., "Minimum Class Confusion for Versatile Domain Adaptation", ECCV 2020, with its mu of 1 and
    temperature of 2.5.
    """

    term = "confusion"

    def __init__(self, *, weight: float = 1.0, temperature: float = 2.5, label_smoothing: float = 0.1) -> None:
        """Choose mu, the temperature and the label smoothing of the source's cross entropy.

        Raises:
            ValueError: if `temperature` is not positive.
        """
        super().__init__(weight=weight, label_smoothing=label_smoothing)
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def target_loss(self, logits: Tensor) -> Tensor:
        """The predictions' class confusion."""
        return class_confusion_loss(logits, self.temperature)
