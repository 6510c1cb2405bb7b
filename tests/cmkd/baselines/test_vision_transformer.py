"""A ViT in pieces is the ViT: bit for bit in both libraries, and cross-attention within its own blocks."""

import math

import pytest
import timm
import torch
from torch import nn

from cmkd.baselines import vit_tokens
from tests.cmkd.baselines.problem import SIDE, open_clip_vit, timm_vit
from tests.messages import names

ENCODERS = {
    "open_clip": lambda: open_clip_vit(),
    "open_clip-avg": lambda: open_clip_vit(pool_type="avg", final_ln_after_pool=True),
    "open_clip-no-ln-pre": lambda: open_clip_vit(no_ln_pre=True, ls_init_value=0.1),
    "timm": lambda: timm_vit(),
    "timm-avg": lambda: timm_vit(global_pool="avg", class_token=False, qk_norm=True),
    "timm-registers": lambda: timm_vit(reg_tokens=2, init_values=0.1, pre_norm=True, qkv_bias=False),
}
every_encoder = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS.keys())
with_class_token = pytest.mark.parametrize(
    "make", [make for name, make in ENCODERS.items() if name != "timm-avg"], ids=lambda make: ""
)


def built(make) -> nn.Module:
    torch.manual_seed(0)
    return make()


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@every_encoder
@pytest.mark.parametrize("training", [True, False])
def test_the_pieces_compose_to_the_encoder(make, training):
    encoder = built(make).train(training)
    tokens = vit_tokens(encoder)
    with torch.no_grad():
        stream = tokens.embed(images())
        for index in range(tokens.depth):
            stream = tokens.block(index, stream)
        assert torch.equal(tokens.finish(stream), encoder(images()))
        halfway = tokens.run(tokens.run(tokens.embed(images()), last=1), first=1)
        assert torch.equal(halfway, stream)


@every_encoder
def test_gradients_reach_the_encoder_s_own_weights(make):
    encoder = built(make)
    tokens = vit_tokens(encoder)
    tokens.finish(tokens.run(tokens.embed(images()))).square().sum().backward()
    pieces = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
    encoder.zero_grad()
    encoder(images()).square().sum().backward()
    for piece, whole in zip(pieces, [p.grad for p in encoder.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(piece, whole)


@every_encoder
def test_the_tokens_are_the_prefix_and_the_patches(make):
    tokens = vit_tokens(built(make))
    assert tokens.patch_size == (8, 8)
    assert tokens.embed(images()).shape[1] == tokens.prefix + 4


@every_encoder
def test_attention_to_oneself_is_the_block(make):
    tokens = vit_tokens(built(make).eval())
    stream = tokens.embed(images())
    for index in range(tokens.depth):
        crossed = tokens.cross_block(index, stream, stream, stream)
        torch.testing.assert_close(crossed, tokens.block(index, stream), rtol=1e-4, atol=1e-5)


@every_encoder
def test_attention_across_is_the_block_on_pasted_sequences(make):
    """Self-attention over query and context, with the queries hidden as keys, is attention from one to the other."""
    tokens = vit_tokens(built(make).eval())
    both = tokens.embed(images(2))
    query, context, stream = both[:1], both[1:], torch.randn_like(both[:1])
    got = tokens.cross_block(0, stream, query, context)
    encoder, size = tokens.encoder, query.shape[1]
    pasted = torch.cat([query, context], dim=1)
    mask = torch.zeros(2 * size, 2 * size)
    mask[:, :size] = -torch.inf
    block = tokens.blocks[0]
    if hasattr(encoder, "transformer"):
        normed = block.ln_1(pasted)
        attended = block.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0][:, :size]
        expected = stream + block.ls_1(attended)
        expected = expected + block.ls_2(block.mlp(block.ln_2(expected)))
    else:
        attended = block.attn(block.norm1(pasted), attn_mask=mask)[:, :size]
        expected = stream + block.ls1(attended)
        expected = expected + block.ls2(block.mlp(block.norm2(expected)))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def loop_class_attention(normed, weight, bias, heads):
    """Softmax of the class token's scaled products with every token's key, head by head, patches only."""
    width = normed.shape[2]
    size = width // heads
    q = normed[:, 0] @ weight[:width].T + bias[:width]
    k = normed @ weight[width : 2 * width].T + bias[width : 2 * width]
    rows = []
    for b in range(len(normed)):
        means = torch.zeros(normed.shape[1])
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            means += torch.softmax(k[b, :, part] @ q[b, part] / math.sqrt(size), dim=0) / heads
        rows.append(means[1:] / means[1:].sum())
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["open_clip", "timm"])
def test_class_attention_is_the_loop_s(name):
    tokens = vit_tokens(built(ENCODERS[name]).eval())
    stream = tokens.embed(images())
    block = tokens.blocks[1]
    if name == "timm":
        arguments = block.norm1(stream), block.attn.qkv.weight, block.attn.qkv.bias, block.attn.num_heads
    else:
        arguments = block.ln_1(stream), block.attn.in_proj_weight, block.attn.in_proj_bias, block.attn.num_heads
    torch.testing.assert_close(tokens.class_attention(1, stream), loop_class_attention(*arguments))


@with_class_token
def test_class_attention_is_a_distribution_over_the_patches(make):
    tokens = vit_tokens(built(make))
    attention = tokens.class_attention(0, tokens.embed(images()))
    assert attention.shape == (3, 4)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(3))


def test_without_a_class_token_its_attention_is_refused():
    tokens = vit_tokens(built(ENCODERS["timm-avg"]))
    with pytest.raises(ValueError, match=names("encoder")):
        tokens.class_attention(0, tokens.embed(images()))


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: nn.Linear(2, 2), ("VisionTransformer", "torch.nn.modules.linear.Linear")),
        (lambda: timm.create_model("resnet10t", num_classes=0), ("VisionTransformer", "timm.models.resnet.ResNet")),
        (lambda: open_clip_vit(attentional_pool=True, attn_pooler_heads=2), ("open_clip", "output_tokens")),
        (lambda: open_clip_vit(output_tokens=True), ("open_clip", "output_tokens")),
        (lambda: open_clip_vit(qk_norm=True), ("open_clip", "batch_first")),
        (
            lambda: timm_vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock),
            ("timm", "Block", "Attention"),
        ),
    ],
)
def test_other_encoders_are_refused_by_name(make, facts):
    with pytest.raises(ValueError, match=names(*facts)):
        vit_tokens(make())
