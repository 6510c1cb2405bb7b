"""Model selection without target labels: scores computed from the logits on the target domain; higher is better."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from cmkd.log_view import log_view

SND_TEMPERATURE = 0.05
SND_ROWS = 1024
"""Number of images whose similarities to all others are held in memory at a time."""


def negative_entropy(logits: Tensor) -> float:
    """Score how certain the predictions are: `-mean_b H(p_b)`, at most 0 (Morerio et al. 2018, as a score).

    Args:
        logits: (N, C), floating point, of the target images.

    Raises:
        ValueError: if the logits are not (N, C) or not finite.
    """
    log_p = _log_probabilities(logits)
    return float(-_entropy(log_p).mean())


def information_maximization(logits: Tensor) -> float:
    """Score how certain and how diverse the predictions are by the mutual information `H(mean_b p_b) - mean_b H(p_b)`.

    The score lies between 0 and log C; a model with the same prediction for every image scores 0. Source: Krause et al.
    2010; SHOT, Liang et al. 2020. Arguments and errors as in `negative_entropy`.
    """
    log_p = _log_probabilities(logits)
    mean = log_p.exp().mean(dim=0)
    return float(-torch.special.xlogy(mean, mean).sum() - _entropy(log_p).mean())


def soft_neighborhood_density(logits: Tensor) -> float:
    """Score how densely the predictions cluster: the mean entropy of each image's similarities to the others.

    The softmax outputs are normalised to length 1, and their cosines are divided by 0.05; each row's softmax excludes
    the image itself. The score lies between 0 and log(N - 1). Source: Saito et al., Tune it the Right Way, 2021.
    Arguments and errors as in `negative_entropy`; N must be 2 or more.
    """
    p = torch.nn.functional.normalize(_log_probabilities(logits).exp(), dim=1)
    if len(p) < 2:
        raise ValueError(f"logits must have 2 rows or more to have neighbours, got {len(p)}")
    total = 0.0
    for start in range(0, len(p), SND_ROWS):
        rows = p[start : start + SND_ROWS]
        similarities = rows @ p.T / SND_TEMPERATURE
        itself = torch.arange(start, start + len(rows), device=p.device)
        similarities.scatter_(1, itself[:, None], -torch.inf)
        q = similarities.softmax(dim=1)
        total -= float(torch.special.xlogy(q, q).sum())
    return total / len(p)


def batch_nuclear_norm(logits: Tensor) -> float:
    """Score how certain and how diverse the predictions are: `||P||_* / sqrt(N min(N, C))`, at most 1.

    `P` is the (N, C) matrix of probabilities. Source: Cui et al., BNM, 2020. Arguments and errors as in
    `negative_entropy`.
    """
    p = _log_probabilities(logits).exp()
    return float(torch.linalg.svdvals(p).sum() / (len(p) * min(p.shape)) ** 0.5)


VALIDATORS: Final[dict[str, Callable[[Tensor], float]]] = {
    "entropy": negative_entropy,
    "im": information_maximization,
    "snd": soft_neighborhood_density,
    "bnm": batch_nuclear_norm,
}
"""Each function takes the logits (N, C) of all target images and returns a score; choose the model with the highest."""


def _log_probabilities(logits: Tensor) -> Tensor:
    if logits.ndim != 2 or logits.numel() == 0 or not logits.is_floating_point():
        raise ValueError(
            "logits must be a non-empty floating point (images, classes) tensor, "
            f"got {logits.dtype} of shape {tuple(logits.shape)}"
        )
    if not logits.isfinite().all():
        raise ValueError(f"logits of {int((~logits.isfinite()).any(dim=1).sum())} of {len(logits)} rows are not finite")
    return log_view(logits.detach())


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(dim=1)
