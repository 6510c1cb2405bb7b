"""transformers loads a merged model that was written in shards."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rst import export, merge
from rst.numerics.exactness import bit_equal


def test_a_merged_folder_of_shards_is_loaded(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base", max_shard_size="3KB")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["model.layers.0.mlp.up_proj.weight"][3] += 1
    merge(tmp_path / "base", export(model, state), tmp_path / "out", max_shard_size="2KB")
    config.save_pretrained(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert loaded.keys() == state.keys()
    assert all(bit_equal(loaded[name], tensor) for name, tensor in state.items())
