"""The encoder with called dense layers computes what it did, and names every layer that an adapter can sit on."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from examples.peft_comparison.dense_layers import call_dense_layers
from examples.uda.mobilenet import MobileNetV2
from examples.uda.tiny_backbones import load_tiny_backbone
from tests.examples.uda.smoke_runs import TINY

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def clip_encoder(backbone):
    encoder = load_tiny_backbone(replace(TINY, backbone=backbone), ["a", "b"], None).encoder.eval()
    for name, weight in encoder.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.ones_(weight)  # open_clip begins with blocks that add nothing, and so learn nothing at first
    return encoder


@pytest.mark.parametrize(
    "make", [lambda: clip_encoder("RN50"), lambda: MobileNetV2().eval()], ids=["clip", "mobilenet"]
)
def test_same_function_and_same_weights(make):
    encoder = make()
    called = copy.deepcopy(encoder)
    names = call_dense_layers(called)
    torch.testing.assert_close(called(IMAGES), encoder(IMAGES), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in called.parameters()) == sum(p.numel() for p in encoder.parameters())
    pointwise = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    projections = [m for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert len(names) == len(pointwise) + len(projections) > 0


def test_every_named_layer_is_called():
    encoder = clip_encoder("RN50")
    names = call_dense_layers(encoder)
    seen = []
    for name in names:
        encoder.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    encoder(IMAGES)
    assert sorted(seen) == sorted(names)
    assert {name.rpartition(".")[2] for name in names} >= {"q_proj", "k_proj", "v_proj", "c_proj", "linear"}


def test_attention_that_calls_nothing_is_refused():
    with pytest.raises(ValueError, match="MultiheadAttention"):
        call_dense_layers(clip_encoder("ViT-B-16"))
