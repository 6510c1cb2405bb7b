"""Partial-set adaptation (App. K): which of the source's classes does the target have at all?"""

import torch
from torch import Tensor, nn


def estimate_classes(predictions: Tensor, classes: int, *, min_count: int = 14) -> Tensor:
    """Keep the classes that are predicted for `min_count` target images or more (App. Eq. 8, after SHOT).

    All of them if none is predicted that often, of which the paper says nothing: the target is then too small, or what
    is predicted too scattered, to rule a class out.

    Args:
        predictions: (N,), int64: the arg-max class of every image of the target training set.
        classes: number of classes C of the source.
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
    """The running estimate of the target's classes, and the weights that App. K gives the losses.

    Both tensors are buffers, so that a resumed run goes on with them.

    Attributes:
        kept: (C,), bool: the classes to adapt to; all of them before the first estimate.
        updates: 0-d, int64: how often `update` was called.
        refresh_every: iterations between two estimates, or None: one pass over the target.
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
        """Start from all classes.

        Args:
            classes: number of classes of the source.
            min_count: T_pda: classes predicted for fewer target images are dropped.
            classification_weight: factor of the source's cross entropy.
            transfer_weight: factor of everything on the target, the regulariser included.
            refresh_every: iterations between two estimates: an epoch of the paper and of the released code, 20 of which
                are 10,000 iterations. None is one pass over the target, which can be as short as 35 iterations: the
                head knows nothing then.

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
        """Whether training has yet to begin: an untrained head's predictions say nothing."""
        return int(self.updates) == 0

    def update(self, predictions: Tensor | None) -> None:
        """Estimate from the predictions for the target training set, (N,) int64; None the first time: all classes."""
        if predictions is not None:
            self.kept.copy_(estimate_classes(predictions, len(self.kept), min_count=self.min_count))
        self.updates += 1
