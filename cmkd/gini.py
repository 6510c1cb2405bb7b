"""Gini impurity `GI(p) = 1 - sum_i p_i^2`: the confidence objective of both target terms, at its two scales."""

import torch
from torch import Tensor

MIN_CLASS_MASS = 1e-8
"""Floor of a class's mass: a class that the whole batch rules out would otherwise give 0 / 0."""


def gini_mean(probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted Gini impurity per sample, averaged over the batch (Eq. 4, 7): `mean_b c_b (1 - sum_i p_bi^2)`.

    Args:
        probabilities: (B, C), floating point; each row sums to 1.
        weights: (B,), the samples' weights `c_b`; all 1 if left out.

    Returns:
        A 0-d tensor of the probabilities' dtype.

    Raises:
        ValueError: if a shape is not the one given above, or the batch is empty.
    """
    weights = _checked_weights(probabilities, weights)
    impurity = 1 - probabilities.square().sum(dim=1)
    return (weights * impurity).mean()


def gini_balanced(probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Gini impurity balanced by class mass, summed over the batch: the released code's scale.

    `sum_b c_b (1 - sum_i p_bi^2 / m_i)` with the class mass `m_i = sum_b' p_b'i`, through which no gradient flows.
    Frequent classes are pulled at less. Its gradient is about C times that of `gini_mean` when the masses are even,
    and the published lambda1 and lambda3 are calibrated for it.

    Args:
        probabilities: (B, C), floating point; each row sums to 1.
        weights: (B,), the samples' weights `c_b`; all 1 if left out.

    Returns:
        A 0-d tensor of the probabilities' dtype.

    Raises:
        ValueError: if a shape is not the one given above, or the batch is empty.
    """
    weights = _checked_weights(probabilities, weights)
    class_mass = probabilities.detach().sum(dim=0).clamp(min=MIN_CLASS_MASS)
    impurity = 1 - (probabilities.square() / class_mass).sum(dim=1)
    return (weights * impurity).sum()


def _checked_weights(probabilities: Tensor, weights: Tensor | None) -> Tensor:
    if probabilities.ndim != 2 or probabilities.numel() == 0:
        raise ValueError(f"probabilities must be a non-empty (batch, classes) tensor, got {tuple(probabilities.shape)}")
    batch = probabilities.shape[0]
    if weights is None:
        return torch.ones(batch, dtype=probabilities.dtype, device=probabilities.device)
    if weights.shape != (batch,):
        raise ValueError(f"weights must have shape ({batch},) to fit the probabilities, got {tuple(weights.shape)}")
    return weights
