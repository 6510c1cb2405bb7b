"""Gini impurity `GI(p) = 1 - sum_i p_i^2`: the confidence objective of both target terms, in its two scalings."""

import torch
from torch import Tensor

MIN_CLASS_MASS = 1e-8
"""Lower bound of a class's mass: a class without mass in the batch would otherwise give 0 / 0."""


def gini_mean(probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the weighted Gini impurity, averaged over the batch (Eq. 4, 7): `mean_b c_b (1 - sum_i p_bi^2)`.

    Args:
        probabilities: (B, C), floating point; each row sums to 1.
        weights: (B,), the sample weights `c_b`; all 1 by default.

    Returns:
        A 0-d tensor of the probabilities' dtype.

    Raises:
        ValueError: if a shape is not the one given above, or the batch is empty.
    """
    weights = _checked_weights(probabilities, weights)
    impurity = 1 - probabilities.square().sum(dim=1)
    return (weights * impurity).mean()


def gini_balanced(probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the Gini impurity balanced by class mass and summed over the batch, as the released code does.

    `sum_b c_b (1 - sum_i p_bi^2 / m_i)` with the class mass `m_i = sum_b' p_b'i`, through which no gradient flows.
    Frequent classes get smaller gradients. The gradient is about C times that of `gini_mean` when the masses are even,
    and the published lambda1 and lambda3 are calibrated for it.

    Args:
        probabilities: (B, C), floating point; each row sums to 1.
        weights: (B,), the sample weights `c_b`; all 1 by default.

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
