"""`nn.MultiheadAttention` over a batch of several adapters."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from rst.errors import ParameterMismatchError
from rst.mixed.operations import per_sample

if TYPE_CHECKING:
    from rst.mixed.context import MixedContext


def multi_head_attention(
    context: "MixedContext",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute what torch's `multi_head_attention_forward` computes, without dropout.

    The arguments are those of torch: query (length, samples, width), key and value (sources, samples, width).

    Raises:
        ParameterMismatchError: there are extra keys or values (`add_bias_kv`, `add_zero_attn`, static ones), there is
            no batch, or the samples are not in the second dimension.
    """
    extras = [tensor for tensor in (bias_k, bias_v, static_k, static_v) if tensor is not None]
    if extras or add_zero_attn or query.ndim != 3 or query.shape[1] != context.groups.size:
        raise ParameterMismatchError(
            f"{context.name(in_proj_weight, out_proj_weight)}: no mixed batch in attention with query "
            f"{tuple(query.shape)} (samples second, {context.groups.size}), {len(extras)} extra keys or values, "
            f"add_zero_attn={add_zero_attn}"
        )
    packed = not use_separate_proj_weight
    weights = [in_proj_weight] * 3 if packed else [q_proj_weight, k_proj_weight, v_proj_weight]
    # The rules expect the samples in the first dimension; torch's attention has them in the second.
    by_sample = [tensor.transpose(0, 1) for tensor in (query, key, value)]
    # Self-attention computes all three in one product, as torch does, so that the sums are the same as torch's.
    if packed and query is key and key is value:
        projected = list(context.linear(by_sample[0], in_proj_weight, in_proj_bias).chunk(3, dim=-1))
    else:
        outputs = [context.linear(tensor, weight) for tensor, weight in zip(by_sample, weights, strict=True)]
        projected = [one.chunk(3, dim=-1)[place] if packed else one for place, one in enumerate(outputs)]
        if in_proj_bias is not None:
            biases = per_sample(context, in_proj_bias).unsqueeze(1).chunk(3, dim=-1)
            projected = [one + bias for one, bias in zip(projected, biases, strict=True)]
    heads = [one.view(*one.shape[:2], num_heads, -1).transpose(1, 2) for one in projected]
    mask = _joint_mask(attn_mask, key_padding_mask, num_heads, heads[0].dtype)
    attended, attention = _attend(heads[0], heads[1], heads[2], mask, need_weights)
    output = context.linear(attended.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias).transpose(0, 1)
    if attention is not None and average_attn_weights:
        attention = attention.mean(dim=1)
    return output, attention


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Attend to tensors of shape (samples, heads, length, width); also return the weights if they are needed."""
    if not need_weights:
        return functional.scaled_dot_product_attention(query, key, value, mask), None
    # The fused kernels do not return the weights, so torch computes them in this way as well.
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    attention = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    return attention @ value, attention


def _joint_mask(attention: Tensor | None, padding: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """Combine both masks into one that is added, and that broadcasts to (samples, heads, length, sources)."""
    masks = []
    if attention is not None:
        masks.append(attention if attention.ndim == 2 else attention.view(-1, heads, *attention.shape[1:]))
    if padding is not None:
        masks.append(padding[:, None, None])
    added = [
        torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf")) if mask.dtype == torch.bool else mask
        for mask in masks
    ]
    return sum(added[1:], added[0]) if added else None
