"""The causal language model that is trained: from a generated config, or the real 260K-parameter stories model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

STORIES_FILE = "stories260K.bin"
_EPSILON, _ROPE_THETA = 1e-5, 10_000.0  # llama2.c's


def generated_model(seed: int = 0, hidden: int = 192, layers: int = 4, vocabulary: int = 1024) -> nn.Module:
    """A small Llama with random weights, in bfloat16; 2.0 million weights by default."""
    torch.manual_seed(seed)
    return _llama(hidden, 8 * hidden // 3, layers, 6, 3, vocabulary, 256)


def load_stories(folder: Path) -> nn.Module:
    """Convert `stories260K.bin` (llama2.c's format, version 0) to a transformers Llama, in bfloat16.

    The file: seven int32 (dim, hidden, layers, heads, key-value heads, vocabulary, positions), then float32 weights,
    one kind after another over all layers. llama2.c rotates neighbouring pairs, transformers the two halves of a
    head, so the rows of the query and key projections change their order.
    """
    raw = (folder / STORIES_FILE).read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, positions = np.frombuffer(raw, np.int32, 7).tolist()
    floats = torch.from_numpy(np.frombuffer(raw, np.float32, offset=28).copy())
    kv_dim = dim * kv_heads // heads
    shapes = {
        "embed_tokens": (vocabulary, dim),
        "input_layernorm": (layers, dim),
        "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, kv_dim, dim),
        "self_attn.v_proj": (layers, kv_dim, dim),
        "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim),
        "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim),
        "norm": (dim,),
    }
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    parts = dict(zip(shapes, torch.split(floats[: sum(sizes)], sizes), strict=True))
    state: dict[str, Tensor] = {}
    for kind, shape in shapes.items():
        weight = parts[kind].view(shape)
        if kind in ("embed_tokens", "norm"):
            state[f"model.{kind}.weight"] = weight
            continue
        for layer in range(layers):
            of_layer = weight[layer]
            if kind in ("self_attn.q_proj", "self_attn.k_proj"):
                of_layer = _halves(of_layer, dim // heads)
            state[f"model.layers.{layer}.{kind}.weight"] = of_layer
    model = _llama(dim, hidden, layers, heads, kv_heads, vocabulary, positions)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # tied to the embedding
        raise ValueError(f"{folder / STORIES_FILE}: lacks {missing}, has besides {unexpected}")
    return model


def _halves(weight: Tensor, head_dim: int) -> Tensor:
    rows, columns = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _llama(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, positions: int
) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "rms_norm_eps": _EPSILON,
        "rope_theta": _ROPE_THETA,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**settings))
    return model.to(torch.bfloat16)
