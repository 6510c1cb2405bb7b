"""Minimum class confusion: target predictions that confuse few pairs of classes."""

from torch import Tensor

from cmkd.baselines.target_loss import TargetLoss
from cmkd.baselines.views import sample_entropy
from cmkd.gini import MIN_CLASS_MASS
from cmkd.log_view import log_view


def class_confusion_loss(logits: Tensor, temperature: float = 2.5) -> Tensor:
    """Compute the mean off-diagonal of the normalised class correlation.

    With `Y = softmax(logits / temperature)` and sample weights `W_b = 1 + exp(-H(Y_b))` that pass no gradient, the
    correlation of two classes is `C_ij = sum_b W_b Y_bi Y_bj`. Each row is normalised to sum to 1, so the scale of the
    weights, which sum to B in the paper, does not matter. The loss is the off-diagonal sum divided by the number of
    classes.

    Args:
        logits: (B, C), floating point.
        temperature: divisor of the logits.

    Returns:
        A 0-d tensor in [0, 1), float32 or better.
    """
    softened = logits / temperature
    p = log_view(softened).exp()
    weights = 1 + (-sample_entropy(softened).detach()).exp()
    # A sum of products instead of a matrix product, which autocast would run in half precision.
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
        """Set mu, the temperature and the label smoothing of the source cross entropy.

        Raises:
            ValueError: if `temperature` is not positive.
        """
        super().__init__(weight=weight, label_smoothing=label_smoothing)
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def target_loss(self, logits: Tensor) -> Tensor:
        """Return the class confusion of the predictions."""
        return class_confusion_loss(logits, self.temperature)
