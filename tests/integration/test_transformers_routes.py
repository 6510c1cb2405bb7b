"""Every route by which a delta leaves or enters a live model whose tensors are not those of its files."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedModel,
)
from typer.testing import CliRunner

from rst import ResidualSparseTrainer, RSTConfig, RSTModel, SparseDelta, export, get_rst_model, merge, open_checkpoint
from rst.checkpoints.checkpoint import RECORD_FILE
from rst.cli import app
from rst.errors import ConfigError
from rst.interop.peft_adapters import from_peft
from rst.interop.vllm import SparsePatch, to_engine_patches
from rst.sync import Follower, Publisher
from tests.rst.checkpoints.tiny_models import RENAMING, bert, built, gpt2, mixtral, same_weights, stepped, vit

PEFT_READS = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
pytestmark = pytest.mark.filterwarnings(PEFT_READS)
BOTH = pytest.mark.parametrize("build", [vit, mixtral])


def folder_and_model(build: Callable[[], PreTrainedModel], folder: Path) -> PreTrainedModel:
    built(build).save_pretrained(folder)
    return built(build).from_pretrained(folder)


def stepping(model: PreTrainedModel, trainer: ResidualSparseTrainer) -> None:
    optimizer = stepped(model)
    trainer.attach(optimizer)
    optimizer.step()
    trainer.detach()


@BOTH
@pytest.mark.parametrize("names", ["of files", "of module"])
def test_a_record_in_a_checkpoint(build: Callable[[], PreTrainedModel], names: str, tmp_path: Path) -> None:
    model = folder_and_model(build, tmp_path / "base")
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-6))
    stepping(model, trainer)
    expected = trainer.export()
    if names == "of files":
        model.save_pretrained(tmp_path / "checkpoint-1")
        torch.save({"trainer": trainer.state_dict()}, tmp_path / "checkpoint-1" / RECORD_FILE)
        delta = export(None, tmp_path / "checkpoint-1")
    else:
        torch.save({"model": model.state_dict(), "rst": trainer.state_dict()}, tmp_path / "one.pt")
        delta = export(None, tmp_path / "one.pt")
    assert delta == expected
    merge(tmp_path / "base", delta, tmp_path / "tuned")
    assert same_weights(type(model).from_pretrained(tmp_path / "tuned"), model)

    other = built(build)  # whose random head, say, is another; w0 comes with the record
    with torch.no_grad():
        next(other.parameters()).add_(1)
    resumed = ResidualSparseTrainer(other, RSTConfig(threshold=1e-6))
    resumed.load_state_dict(torch.load(tmp_path / "one.pt")["rst"] if names == "of module" else trainer.state_dict())
    other.load_state_dict(model.state_dict())
    assert resumed.export().parameters == expected.parameters


@BOTH
def test_adapters_of_an_rst_model(build: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    base = folder_and_model(build, tmp_path / "base")
    model = get_rst_model(copy.deepcopy(base), RSTConfig(threshold=1e-6))
    assert model.trainer is not None
    stepping(model.base_model, model.trainer)
    model.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "base", SparseDelta.load(tmp_path / "adapter" / "delta.safetensors"), tmp_path / "tuned")
    tuned = type(base).from_pretrained(tmp_path / "tuned")
    assert same_weights(model.base_model, tuned)

    loaded = RSTModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter")
    assert same_weights(loaded.base_model, tuned)
    with loaded.disable_adapter():
        assert same_weights(loaded.base_model, base)
    loaded.to(torch.bfloat16)
    assert same_weights(loaded.base_model, copy.deepcopy(tuned).to(torch.bfloat16))
    with loaded.disable_adapter():
        assert same_weights(loaded.base_model, copy.deepcopy(base).to(torch.bfloat16))

    trained_on = RSTModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter", is_trainable=True)
    assert trained_on.get_delta().parameters == model.get_delta().parameters


def test_a_mixed_batch(tmp_path: Path) -> None:
    base = built(vit)
    model = get_rst_model(copy.deepcopy(base), RSTConfig(threshold=1e-6))
    assert model.trainer is not None
    stepping(model.base_model, model.trainer)
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        mixed = RSTModel(base)
        mixed.add_adapter("one", model.get_delta())
        logits = mixed(images, adapter_names=["one", "__base__"]).logits
        torch.testing.assert_close(logits[:1], model(images[:1]).logits)
        with mixed.disable_adapter():
            torch.testing.assert_close(logits[1:], mixed(images[1:]).logits)


@BOTH
def test_engine_patches_and_verify(build: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    model = folder_and_model(build, tmp_path / "base")
    base = copy.deepcopy(model)
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-6))
    stepping(model, trainer)
    delta = trainer.export()
    delta.save(tmp_path / "delta.safetensors")
    for weights in (base, tmp_path / "base"):
        tuned = load_file(tmp_path / "base" / "model.safetensors")
        for patch in to_engine_patches(delta, weights).patches:
            assert isinstance(patch, SparsePatch)
            tuned[patch.name].view(-1)[patch.indices.long()] = patch.values
        assert all(torch.equal(tuned[name], weight) for name, weight in open_checkpoint(model).items())
    verify = ["verify", str(tmp_path / "delta.safetensors"), "--base"]
    assert CliRunner().invoke(app, [*verify, str(tmp_path / "base")]).exit_code == 0
    model.save_pretrained(tmp_path / "other")
    assert CliRunner().invoke(app, [*verify, str(tmp_path / "other")]).exit_code != 0


@BOTH
def test_a_chain_of_live_models(build: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    model = folder_and_model(build, tmp_path / "base")
    other = built(build)
    with torch.no_grad():
        next(other.parameters()).add_(1)  # at no step of the chain: it starts from the anchor
    followers = {served: Follower(served, tmp_path / "chain") for served in (copy.deepcopy(model), other)}
    of_files = Follower(load_file(tmp_path / "base" / "model.safetensors"), tmp_path / "chain")
    publisher = Publisher(model, tmp_path / "chain", anchor_every=2)
    for step in (1, 2, 3):
        stepped(model, step).step()
        publisher.publish()
        for served, follower in followers.items():
            assert follower.update().step == step
            assert same_weights(served, model)
        assert of_files.update().step == step
        assert all(torch.equal(of_files.weights[name], weight) for name, weight in open_checkpoint(model).items())


@RENAMING
@BOTH
def test_an_adapter_of_peft(build: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = folder_and_model(build, tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, modules_to_save=["gate"])
    if build is vit:
        config.modules_to_save = ["classifier"]
    adapted = get_peft_model(copy.deepcopy(model), config)
    adapted.save_pretrained(tmp_path / "lora")
    merged = adapted.merge_and_unload()
    for base in (tmp_path / "base", model):
        delta = from_peft(tmp_path / "lora", base)
        merge(tmp_path / "base", delta, tmp_path / f"tuned-{type(base).__name__}")
        tuned = type(model).from_pretrained(tmp_path / f"tuned-{type(base).__name__}")
        assert same_weights(tuned, merged)
        with delta.apply(model):
            assert same_weights(model, merged)


@pytest.mark.parametrize(
    ("headless", "headed", "build"),
    [(GPT2Model, GPT2LMHeadModel, gpt2), (BertModel, BertForSequenceClassification, bert)],
)
def test_a_head_on_a_base_without_one(
    headless: type[PreTrainedModel], headed: type[PreTrainedModel], build: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    full = built(build)
    getattr(full, full.base_model_prefix).save_pretrained(tmp_path / "base")
    model = headed.from_pretrained(tmp_path / "base")
    head = ["classifier"] if headed is BertForSequenceClassification else None
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-6, modules_to_save=head))
    stepping(model, trainer)
    delta = trainer.export()
    files = load_file(tmp_path / "base" / "model.safetensors")
    assert delta.keys() <= files.keys()
    merge(tmp_path / "base", delta, tmp_path / "tuned")
    if head is None or int(transformers.__version__.partition(".")[0]) >= 5:  # before, it loads no such mixture
        assert same_weights(headed.from_pretrained(tmp_path / "tuned"), model)

    inner = headless.from_pretrained(tmp_path / "base")
    with delta.sparse_only().apply(inner):
        assert same_weights(inner, getattr(model, model.base_model_prefix))

    model.name_or_path = ""  # the base's files are not at hand, so that the delta has the names of its own folder
    full_names = ResidualSparseTrainer(copy.deepcopy(model), RSTConfig(threshold=1e-6, modules_to_save=head))
    assert any(name.startswith(f"{model.base_model_prefix}.") for name in full_names.state_dict()["base"])


def test_gamma_and_beta(tmp_path: Path) -> None:
    built(bert).save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(old, file, {"format": "pt"})
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    base = copy.deepcopy(model)
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-6))
    stepping(model, trainer)
    delta = trainer.export()
    assert any(name.endswith("LayerNorm.gamma") for name in delta)
    merge(tmp_path / "base", delta, tmp_path / "tuned")
    assert same_weights(BertForSequenceClassification.from_pretrained(tmp_path / "tuned"), model)
    newer = built(bert)
    newer.load_state_dict(base.state_dict())
    with delta.apply(newer):
        assert same_weights(newer, model)
    newer.save_pretrained(tmp_path / "newer")
    merge(tmp_path / "newer", delta, tmp_path / "newer-tuned")
    assert same_weights(BertForSequenceClassification.from_pretrained(tmp_path / "newer-tuned"), model)


@RENAMING
def test_patterns_may_have_the_files_names() -> None:
    def trained(model: nn.Module, **settings: Any) -> set[str]:
        return set(ResidualSparseTrainer(model, RSTConfig(threshold=1e-6, **settings)).tracked.sparse)

    model = built(vit)
    live = trained(model, target_modules=["q_proj"])
    assert live == {f"vit.layers.0.attention.q_proj.{part}" for part in ("weight", "bias")}
    assert trained(built(vit), target_modules=["attention.attention.query"]) == live
    experts = built(mixtral)
    assert len(trained(experts, target_modules=["block_sparse_moe.experts"])) == 2
    with pytest.raises(ConfigError, match="w1") as caught:
        trained(built(mixtral), target_modules=["w1"])
    assert caught.value.parameter == "model.layers.0.mlp.experts.gate_up_proj"
    with pytest.raises(ConfigError, match="no_such"):
        trained(built(vit), target_modules=["no_such"])
