"""A ViT encoder split into its parts: images to tokens, tokens through the blocks, tokens to features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ViTTokens(ABC):
    """The parts of a ViT, not copied: `embed`, then each `block`, then `finish` compute what the encoder returns.

    Tokens are (B, prefix + N, width): `prefix` tokens such as the class token, then the patches row by row.

    Attributes:
        depth: number of blocks.
        prefix: number of tokens before the patches.
        patch_size: height and width of a patch in pixels.
    """

    depth: int
    prefix: int
    patch_size: tuple[int, int]

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Turn images (B, 3, H, W) into the tokens of the first block."""

    @abstractmethod
    def block(self, index: int, tokens: Tensor) -> Tensor:
        """Run tokens through one block."""

    @abstractmethod
    def cross_block(self, index: int, stream: Tensor, query: Tensor, context: Tensor) -> Tensor:
        """Run one block on `stream` with attention from `query` to `context` instead of self-attention.

        All three are tokens of the same shape at the input of this block; `cross_block(i, x, x, x)` equals
        `block(i, x)`.
        """

    @abstractmethod
    def class_attention(self, index: int, tokens: Tensor) -> Tensor:
        """Return one block's attention (B, N) from the class token to the patches, averaged over heads; rows sum to 1.

        Raises:
            ValueError: if the encoder has no class token.
        """

    @abstractmethod
    def finish(self, tokens: Tensor) -> Tensor:
        """Turn the last block's tokens into the encoder's features (B, D)."""

    def run(self, tokens: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Run tokens through the blocks from `first` up to but not including `last`, or to the end if it is None."""
        for index in range(first, self.depth if last is None else last):
            tokens = self.block(index, tokens)
        return tokens

    def _patch_shares(self, attention: Tensor) -> Tensor:
        patches = attention[:, self.prefix :].float()
        return patches / patches.sum(dim=1, keepdim=True)


def vit_tokens(encoder: nn.Module) -> ViTTokens:
    """Split an open_clip `VisionTransformer` (a CLIP's `visual`) or a timm one into its parts.

    Raises:
        ValueError: if the encoder is of another class, such as a ResNet, or has unsupported parts.
    """
    kind = f"{type(encoder).__module__}.{type(encoder).__qualname__}"
    if kind == "open_clip.transformer.VisionTransformer":
        return _OpenClipTokens(encoder)
    if kind == "timm.models.vision_transformer.VisionTransformer":
        return _TimmTokens(encoder)
    raise ValueError(f"encoder must be a VisionTransformer of open_clip or timm, got {kind}")


class _OpenClipTokens(ViTTokens):
    def __init__(self, encoder: Any) -> None:
        self.blocks: Sequence[Any] = encoder.transformer.resblocks
        if encoder.attn_pool is not None or encoder.output_tokens:
            raise ValueError("encoder: open_clip's attentional pooling and output_tokens are not supported")
        if not all(isinstance(block.attn, nn.MultiheadAttention) and block.attn.batch_first for block in self.blocks):
            raise ValueError("encoder: only open_clip's plain blocks with batch_first attention are supported")
        self.encoder = encoder
        self.depth = len(self.blocks)
        self.prefix = 1
        height, width = encoder.conv1.kernel_size
        self.patch_size = (height, width)

    def embed(self, images: Tensor) -> Tensor:
        encoder = self.encoder
        patches = encoder.conv1(images).flatten(2).transpose(1, 2)
        class_token = encoder.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + encoder.positional_embedding.to(patches.dtype)
        embedded: Tensor = encoder.ln_pre(encoder.patch_dropout(tokens))
        return embedded

    def block(self, index: int, tokens: Tensor) -> Tensor:
        out: Tensor = self.blocks[index](tokens)
        return out

    def cross_block(self, index: int, stream: Tensor, query: Tensor, context: Tensor) -> Tensor:
        block = self.blocks[index]
        normed = block.ln_1(context)
        attended, _ = block.attn(block.ln_1(query), normed, normed, need_weights=False)
        stream = stream + block.ls_1(attended)
        out: Tensor = stream + block.ls_2(block.mlp(block.ln_2(stream)))
        return out

    def class_attention(self, index: int, tokens: Tensor) -> Tensor:
        block = self.blocks[index]
        normed = block.ln_1(tokens)
        _, weights = block.attn(normed[:, :1], normed, normed, need_weights=True)
        return self._patch_shares(weights[:, 0])

    def finish(self, tokens: Tensor) -> Tensor:
        encoder = self.encoder
        if not encoder.final_ln_after_pool:
            tokens = encoder.ln_post(tokens)
        pooled = tokens[:, 1:].mean(dim=1) if encoder.pool_type == "avg" else tokens[:, 0]
        if encoder.final_ln_after_pool:
            pooled = encoder.ln_post(pooled)
        features: Tensor = pooled if encoder.proj is None else pooled @ encoder.proj
        return features


class _TimmTokens(ViTTokens):
    def __init__(self, encoder: Any) -> None:
        self.blocks: Sequence[Any] = encoder.blocks
        if not all(
            type(block).__qualname__ == "Block"
            and type(block.attn).__qualname__ == "Attention"
            and getattr(block.attn, "gate", None) is None
            for block in self.blocks
        ):
            raise ValueError("encoder: only timm's plain Block with an ungated Attention is supported")
        self.encoder = encoder
        self.depth = len(self.blocks)
        self.prefix = encoder.num_prefix_tokens
        self.patch_size = encoder.patch_embed.patch_size

    def embed(self, images: Tensor) -> Tensor:
        encoder = self.encoder
        tokens: Tensor = encoder.norm_pre(encoder.patch_drop(encoder._pos_embed(encoder.patch_embed(images))))
        return tokens

    def block(self, index: int, tokens: Tensor) -> Tensor:
        out: Tensor = self.blocks[index](tokens)
        return out

    def cross_block(self, index: int, stream: Tensor, query: Tensor, context: Tensor) -> Tensor:
        block = self.blocks[index]
        attn = block.attn
        q, k, v = self._query_key_value(attn, block.norm1(query), block.norm1(context))
        dropout = attn.attn_drop.p if attn.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
        attended = attn.proj_drop(attn.proj(attn.norm(attended)))
        stream = stream + block.drop_path1(block.ls1(attended))
        out: Tensor = stream + block.drop_path2(block.ls2(block.mlp(block.norm2(stream))))
        return out

    def class_attention(self, index: int, tokens: Tensor) -> Tensor:
        if not self.encoder.has_class_token:
            raise ValueError("encoder has no class token, whose attention is asked for")
        block = self.blocks[index]
        normed = block.norm1(tokens)
        q, k, _ = self._query_key_value(block.attn, normed[:, :1], normed)
        weights = (q @ k.transpose(2, 3) * block.attn.scale).float().softmax(dim=3)
        return self._patch_shares(weights.mean(dim=1)[:, 0])

    def finish(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.encoder.forward_head(self.encoder.norm(tokens))
        return features

    @staticmethod
    def _query_key_value(attn: Any, query: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project with the thirds of the block's joint projection; each result is (B, heads, tokens, head width)."""

        def heads(x: Tensor, third: int) -> Tensor:
            size = attn.num_heads * attn.head_dim
            part = slice(third * size, (third + 1) * size)
            bias = None if attn.qkv.bias is None else attn.qkv.bias[part]
            projected = F.linear(x, attn.qkv.weight[part], bias)
            return projected.reshape(*x.shape[:2], attn.num_heads, attn.head_dim).transpose(1, 2)

        return attn.q_norm(heads(query, 0)), attn.k_norm(heads(context, 1)), heads(context, 2)
