"""The same encoder with every dense map as a called `nn.Linear`, so that PEFT can adapt it.

A 1x1 convolution is a linear layer at each pixel, and PEFT's SHiRA supports only linear layers. open_clip's attention
pool reads the weights of its projections without calling them, so an adapter on them would silently do nothing.
"""

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn
from torch.nn import functional as F


class PointwiseLinear(nn.Module):
    """A 1x1 convolution of stride 1 as the linear layer that it is."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over the weights of `conv`."""
        super().__init__()
        self.linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
        self.linear.weight = nn.Parameter(conv.weight.detach()[:, :, 0, 0].contiguous())
        if conv.bias is not None:
            self.linear.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        y: Tensor = self.linear(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class CalledAttentionPool(nn.Module):
    """open_clip's `AttentionPool2d`, whose four projections are called as layers."""

    def __init__(self, pool: AttentionPool2d) -> None:
        """Take over the weights of `pool`."""
        super().__init__()
        self.positional_embedding = pool.positional_embedding
        self.q_proj, self.k_proj, self.v_proj, self.c_proj = pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj
        self.num_heads = pool.num_heads

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) of a map (B, C, H, W): its mean asks, mean and pixels answer."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        query, key, value = (
            projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        pooled = F.scaled_dot_product_attention(query, key, value)
        features: Tensor = self.c_proj(pooled.transpose(1, 2).flatten(1))
        return features


def call_dense_layers(encoder: nn.Module) -> list[str]:
    """Replace 1x1 convolutions and attention pools in place; the encoder computes what it did, up to rounding.

    Returns:
        The names of all linear layers. What is left out is convolutions over several pixels, depthwise ones among them.

    Raises:
        ValueError: for an `nn.MultiheadAttention`, which does not call its projections either.
    """
    if attention := [name for name, module in encoder.named_modules() if isinstance(module, nn.MultiheadAttention)]:
        raise ValueError(f"{attention[0]} is an nn.MultiheadAttention: an adapter on its out_proj would do nothing")
    for name, module in list(encoder.named_modules()):
        if isinstance(module, AttentionPool2d):
            encoder.set_submodule(name, CalledAttentionPool(module))
        elif isinstance(module, nn.Conv2d) and _is_pointwise(module):
            encoder.set_submodule(name, PointwiseLinear(module))
    return [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]


def _is_pointwise(conv: nn.Conv2d) -> bool:
    plain = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1
    return plain and conv.padding in (0, (0, 0))
