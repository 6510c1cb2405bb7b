"""The task head h: BatchNorm, LayerNorm, Linear (App. D)."""

import torch
from torch import Tensor, nn

LINEAR_STD = 0.001
"""Standard deviation of the linear layer's initial weights (App. D)."""


class TaskHead(nn.Module):
    """Classifies image features with `Linear(LayerNorm(BatchNorm(x)))`, initialised with small weights (App. D).

    The linear weights start from N(0, 0.001^2), so the student's view is nearly uniform at first; the BatchNorm's bias
    is 0 and is not trained. The released code's head is
    `TaskHead(dim, classes, linear_bias=False, layer_norm_eps=1e-6)`; the fields `head_linear_bias` and
    `head_layer_norm_eps` of a `Preset` hold both values.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        linear_bias: bool = True,
        layer_norm_eps: float = 1e-5,
        generator: torch.Generator | None = None,
    ) -> None:
        """Create a head for features of width `dim`.

        Args:
            dim: width of the features.
            classes: number of logits.
            linear_bias: whether the linear layer has a bias; it starts at 0.
            layer_norm_eps: epsilon of the LayerNorm.
            generator: draws the linear weights; torch's global generator by default.

        Raises:
            ValueError: if `dim` or `classes` is not positive.
        """
        super().__init__()
        if dim <= 0 or classes <= 0:
            raise ValueError(f"dim and classes must be positive, got dim={dim}, classes={classes}")
        self.batch_norm = nn.BatchNorm1d(dim)
        self.batch_norm.bias.requires_grad_(False)
        self.layer_norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.linear = nn.Linear(dim, classes, bias=linear_bias)
        nn.init.normal_(self.linear.weight, std=LINEAR_STD, generator=generator)
        if linear_bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, classes) of features (B, dim)."""
        logits: Tensor = self.linear(self.layer_norm(self.batch_norm(features)))
        return logits
