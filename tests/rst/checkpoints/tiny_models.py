"""Tiny random models of transformers whose tensors, when live, are not those of their files, and some whose are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel
from transformers.utils import logging

RENAMING = pytest.mark.skipif(
    int(hf.__version__.partition(".")[0]) < 5, reason="before transformers 5 live names are those of the files"
)
TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS: dict[str, Any] = TEXT | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def vit() -> PreTrainedModel:
    return hf.ViTForImageClassification(hf.ViTConfig(**VISION))


def dinov2() -> PreTrainedModel:
    return hf.Dinov2ForImageClassification(hf.Dinov2Config(**VISION | {"mlp_ratio": 2}))


def mixtral() -> PreTrainedModel:
    return hf.MixtralForCausalLM(hf.MixtralConfig(**TEXT, num_local_experts=3))


def qwen3_moe() -> PreTrainedModel:
    return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**EXPERTS, head_dim=8))


def deepseek_v3() -> PreTrainedModel:
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    groups = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "n_shared_experts": 1}
    return hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**EXPERTS | ranks | groups))


def olmoe() -> PreTrainedModel:
    return hf.OlmoeForCausalLM(hf.OlmoeConfig(**EXPERTS, pad_token_id=0))


def gpt_neox() -> PreTrainedModel:
    settings = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**settings))


def segformer() -> PreTrainedModel:
    blocks: dict[str, Any] = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
    parts = {"num_attention_heads": [1, 2], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2]}
    return hf.SegformerForSemanticSegmentation(hf.SegformerConfig(**blocks | parts, decoder_hidden_size=8))


def llava() -> PreTrainedModel:
    parts: dict[str, Any] = {"vision_config": hf.CLIPVisionConfig(**VISION), "text_config": hf.LlamaConfig(**TEXT)}
    return hf.LlavaForConditionalGeneration(hf.LlavaConfig(**parts, image_token_id=5))


def qwen2_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 14, "mlp_ratio": 2}
    config = hf.Qwen2VLConfig(text_config=TEXT | {"rope_parameters": rope}, vision_config=vision)
    return hf.Qwen2VLForConditionalGeneration(config)


def gemma3() -> PreTrainedModel:
    config = hf.Gemma3Config(text_config=TEXT | {"head_dim": 8}, vision_config=VISION, mm_tokens_per_image=4)
    return hf.Gemma3ForConditionalGeneration(config)


def paligemma() -> PreTrainedModel:
    text = TEXT | {"model_type": "gemma", "head_dim": 8}
    vision = VISION | {"model_type": "siglip_vision_model", "projection_dim": 16}
    config = hf.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=16, image_token_index=60)
    return hf.PaliGemmaForConditionalGeneration(config)


def detr() -> PreTrainedModel:
    backbone = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 4}
    layers = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    return hf.DetrForObjectDetection(
        hf.DetrConfig(
            **heads | layers, use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone
        )
    )


def llama() -> PreTrainedModel:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, tie_word_embeddings=True))


def bert() -> PreTrainedModel:
    settings = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    return hf.BertForSequenceClassification(hf.BertConfig(**settings))


def gpt2() -> PreTrainedModel:
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32, **ends))


def built(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The same random model each time, every weight of it random."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    try:
        model = build().eval()
    except AttributeError as error:
        if "module transformers has no attribute" in str(error):
            pytest.skip(f"{error} in {hf.__version__}")
        raise
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def stepped(model: PreTrainedModel, seed: int = 1) -> torch.optim.Optimizer:
    """An optimiser with gradients in a third of every weight that trains, ready for one step."""
    chance = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            gradient = torch.randn(parameter.shape, generator=chance)
            parameter.grad = gradient * (torch.rand(parameter.shape, generator=chance) < 0.3)
    return torch.optim.SGD(model.parameters(), lr=0.1)


def same_weights(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
