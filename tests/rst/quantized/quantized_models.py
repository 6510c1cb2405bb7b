"""A small model, quantised by each library that is there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

Quantize = Callable[[nn.Module], nn.Module]


class Net(nn.Module):
    """Two linear layers that are quantised, a norm between them, and a head."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(64, 128, dtype=dtype)
        self.norm = nn.LayerNorm(128, dtype=dtype)
        self.down = nn.Linear(128, 64, bias=False, dtype=dtype)
        self.head = nn.Linear(64, 3, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.down(self.norm(self.up(inputs).relu())))
        return logits


def nf4(model: Net) -> Net:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    for name in ("up", "down"):
        layer = getattr(model, name)
        sizes = (layer.in_features, layer.out_features)
        found = bnb.nn.Linear4bit(*sizes, bias=layer.bias is not None, compute_dtype=layer.weight.dtype)
        found.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=found)
        found.bias = layer.bias
        setattr(model, name, found.to("cpu"))
    return model


def int8(model: Net) -> Net:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    for name in ("up", "down"):
        layer = getattr(model, name)
        sizes = (layer.in_features, layer.out_features)
        found = bnb.nn.Linear8bitLt(*sizes, bias=layer.bias is not None, has_fp16_weights=False)
        found.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        found.bias = layer.bias
        setattr(model, name, found.to("cpu"))
    return model


def torchao_int8(model: Net) -> Net:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), lambda _, name: name in ("up", "down"))
    return model


def torchao_int4(model: Net) -> Net:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    granularity = pytest.importorskip("torchao.quantization.granularity", reason="torchao is too old")
    config = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity.PerGroup(32))
    torchao.quantize_(model, config, lambda _, name: name in ("up", "down"))
    return model


QUANTIZERS: dict[str, Callable[[Net], Net]] = {
    function.__name__: function for function in (nf4, int8, torchao_int8, torchao_int4)
}
