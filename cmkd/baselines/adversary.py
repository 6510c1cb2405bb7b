"""What adversarial methods share: gradient reversal, its schedule, the features' scale, a discriminator, its loss."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmkd.ramp import sigmoid_ramp


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """Return x unchanged, and multiply its gradient by `-strength` in the backward pass (DANN)."""
    reversed_x: Tensor = _Reversal.apply(x, strength)
    return reversed_x


def steep_ramp(iteration: int, max_iterations: int) -> float:
    """Return DANN's schedule `2 / (1 + exp(-10 p)) - 1` (Sec. 5.2.2), `p = iteration / max_iterations`, at most 1."""
    return sigmoid_ramp(10 * min(iteration, max_iterations), max_iterations, clip=False)


def at_unit_scale(features: Tensor) -> Tensor:
    """Normalise each row of features (B, D) to mean 0 and variance 1, in float32 or better, for a discriminator.

    The published methods pass the features unchanged. Here the task head starts with a BatchNorm (App. D), which
    removes their scale, so the source cross entropy does not constrain it. As a domain loss is not bounded, the encoder
    would raise it with longer and longer features until they overflow.
    """
    return F.layer_norm(_full_precision(features), features.shape[1:])


def domain_discriminator(inputs: int, hidden: int = 1024) -> nn.Sequential:
    """Build three linear layers from (B, inputs) to a logit (B, 1), positive for the source, with dropout 0.5 between.

    This is the discriminator of CDAN's released code, which uses Xavier's normal initialisation.
    """
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)]
    for layer in layers:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    first, second, last = layers
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(0.5), second, nn.ReLU(), nn.Dropout(0.5), last)


def domain_loss(
    source_logits: Tensor,
    target_logits: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Compute the binary cross entropy of a discriminator's logits: the mean of the two domains' weighted means.

    Args:
        source_logits: (S, 1), should be positive.
        target_logits: (T, 1), should be negative.
        source_weights: (S,), sample weights, scaled to sum to 1; equal by default.
        target_weights: (T,), the same for the target.

    Returns:
        A 0-d tensor, float32 or better.
    """
    source = F.softplus(-_full_precision(source_logits)).squeeze(1)
    target = F.softplus(_full_precision(target_logits)).squeeze(1)
    return 0.5 * (_weighted_mean(source, source_weights) + _weighted_mean(target, target_weights))


def _full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()
