"""Partial-set adaptation (App. K): estimates which of the source classes the target has."""

import torch
from torch import Tensor, nn


def estimate_classes(predictions: Tensor, classes: int, *, min_count: int = 14) -> Tensor:
    """Keep the classes that are predicted for at least `min_count` target images (App. Eq. 8, after SHOT).

    If no class is predicted that often, all are kept: the target is then too small, or the predictions too scattered,
    to rule a class out. The paper does not discuss this case.

    Args:
        predictions: (N,), int64: the argmax class of every image of the target training set.
        classes: number of source classes C.
        min_count: T_pda; the paper's 14 suits Office-Home.

    Returns:
        (C,), bool, on the predictions' device.

    Raises:
        ValueError: if `predictions` is not a vector of class numbers.
    """
    if predictions.ndim != 1 or predictions.dtype != torch.int64:
        raise ValueError(
            f"predictions must be an int64 vector, got {predictions.dtype} of shape {tuple(predictions.shape)}"
        )
    counts = torch.bincount(predictions, minlength=classes)
    if len(counts) != classes:
        raise ValueError(f"predictions must be below classes={classes}, got {len(counts) - 1}")
    kept = counts >= min_count
    return kept if kept.any() else torch.ones_like(kept)


class PartialSet(nn.Module):
    """The running estimate of the target's classes, and the loss weights of App. K.

    Both tensors are buffers, so that a resumed run continues with them.

    Attributes:
        kept: (C,), bool: the classes to adapt to; all classes before the first estimate.
        updates: 0-d, int64: the number of calls of `update`.
        refresh_every: iterations between two estimates, or None for one pass over the target.
    """

    kept: Tensor
    updates: Tensor

    def __init__(
        self,
        classes: int,
        *,
        min_count: int = 14,
        classification_weight: float = 0.5,
        transfer_weight: float = 0.1,
        refresh_every: int | None = 500,
    ) -> None:
        """Start with all classes.

        Args:
            classes: number of source classes.
            min_count: T_pda; classes predicted for fewer target images are dropped.
            classification_weight: factor of the source cross entropy.
            transfer_weight: factor of all other terms, the regulariser included.
            refresh_every: iterations between two estimates. The default is the paper's and the released code's epoch,
                20 of which are 10,000 iterations. None is one pass over the target, which can be as short as 35
                iterations: too few to train a head.

        Raises:
            ValueError: if `classes` or `refresh_every` is not positive.
        """
        super().__init__()
        if classes <= 0:
            raise ValueError(f"classes must be positive, got {classes}")
        if refresh_every is not None and refresh_every <= 0:
            raise ValueError(f"refresh_every must be positive or None, got {refresh_every}")
        self.refresh_every = refresh_every
        self.min_count = min_count
        self.classification_weight = classification_weight
        self.transfer_weight = transfer_weight
        self.register_buffer("kept", torch.ones(classes, dtype=torch.bool))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def never_updated(self) -> bool:
        """Whether training has yet to begin, so that the head is untrained and its predictions mean nothing."""
        return int(self.updates) == 0

    def update(self, predictions: Tensor | None) -> None:
        """Estimate the classes from the target's predictions (N,), int64; None, for the first call, changes nothing."""
        if predictions is not None:
            self.kept.copy_(estimate_classes(predictions, len(self.kept), min_count=self.min_count))
        self.updates += 1
