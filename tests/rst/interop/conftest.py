"""Tiny random models in folders, as transformers writes them."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

# PEFT reads a property that this version of transformers has renamed.
RENAMED = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"


def tiny_llama(tied: bool = False, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        dtype=dtype,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    return BertForSequenceClassification(config).eval()


def save(model: PreTrainedModel, folder: Path, shard: str = "1GB") -> Path:
    logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=shard)
    logging.enable_progress_bar()
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder of untied float32 weights in one file."""
    return save(tiny_llama(), tmp_path / "llama")
