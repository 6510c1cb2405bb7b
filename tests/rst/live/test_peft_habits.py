"""What PEFT's users type, and find as they know it; beside PEFT itself where it can be asked."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import (
    AutoRSTModel,
    CheckpointError,
    ConfigError,
    DeltaFormatError,
    ParameterMismatchError,
    RSTConfig,
    RSTModel,
    SparseDelta,
    export,
    get_rst_model,
)
from tests.refusal import refused


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def delta_of(seed: int) -> SparseDelta:
    tuned = network()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        tuned[0].weight[seed] += 1
        tuned[2].weight += torch.randn(3, 16, generator=generator)
    return export(network(), tuned, modules_to_save=["2"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = get_rst_model(network(), RSTConfig(threshold=0.0))
    with torch.no_grad():
        model.base_model[0].weight += 1
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


class TestFromPretrained:
    def test_is_for_inference(self, folder: Path) -> None:
        base = network()
        base[2].bias.requires_grad_(False)
        model = RSTModel.from_pretrained(base, folder)
        assert not model.training
        assert not base.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        model.add_adapter("new", RSTConfig(threshold=0.0))
        assert [name for name, one in base.named_parameters() if not one.requires_grad] == ["2.bias"]
        model.delete_adapter("new")
        assert not any(parameter.requires_grad for parameter in model.parameters())
        model.unload()
        assert [name for name, one in base.named_parameters() if not one.requires_grad] == ["2.bias"]

    def test_or_for_training(self, folder: Path) -> None:
        model = RSTModel.from_pretrained(network(), folder, is_trainable=True)
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_a_file_is_an_adapter_too(self, folder: Path) -> None:
        model = RSTModel.from_pretrained(network(), folder / "delta.safetensors")
        model.load_adapter(folder, "folder")
        model.add_adapter("added", folder)
        assert model.get_delta("default") == model.get_delta("folder") == model.get_delta("added")

    def test_unknown_keywords_are_refused(self, folder: Path) -> None:
        model = RSTModel(network())
        for call in (
            lambda **options: RSTModel.from_pretrained(network(), folder, **options),
            lambda **options: AutoRSTModel.from_pretrained(folder, **options),
            lambda **options: RSTConfig.from_pretrained(folder, **options),
            lambda **options: model.load_adapter(folder, "a", **options),
            lambda **options: model.hotswap_adapter(folder, "a", **options),
        ):
            with refused(ConfigError, "is_trainabel", "local_files_only"):
                call(is_trainabel=True)
        model.add_adapter("a", folder)
        with refused(ConfigError, "privat", "private"):
            model.push_to_hub("me/task", privat=True)


class TestConfigurations:
    def test_are_saved_and_read_as_adapters_are(self, folder: Path, tmp_path: Path) -> None:
        config = RSTConfig(threshold=1e-3, target_modules=["0"])
        config.save_pretrained(tmp_path / "new")
        assert RSTConfig.from_pretrained(tmp_path / "new") == config
        assert RSTConfig.from_pretrained(folder) == RSTConfig(threshold=0.0)
        content = json.loads((folder / "rst_config.json").read_text())
        (folder / "rst_config.json").write_text(json.dumps(content | {"base_model_name_or_path": "base"}))
        config.save_pretrained(folder)
        content = json.loads((folder / "rst_config.json").read_text())
        assert (content["base_model_name_or_path"], content["config"]) == ("base", config.to_dict())

    @pytest.mark.parametrize("content", [{"config": []}, {"base_model_name_or_path": 1}, {"format_version": 2}])
    def test_damaged_ones_are_refused(self, folder: Path, content: dict[str, Any]) -> None:
        file = folder / "rst_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | content))
        with refused(DeltaFormatError, file=file):
            RSTConfig.from_pretrained(folder)
        with refused(DeltaFormatError, file=file):
            RSTModel.from_pretrained(network(), folder)

    def test_without_settings(self, tmp_path: Path) -> None:
        model = RSTModel(network())
        model.add_adapter("default", SparseDelta({}))
        model.save_pretrained(tmp_path)
        with pytest.raises(ConfigError):
            RSTConfig.from_pretrained(tmp_path)
        with refused(CheckpointError, file=tmp_path / "none" / "rst_config.json"):
            (tmp_path / "none").mkdir()
            RSTConfig.from_pretrained(tmp_path / "none")

    def test_all_linear(self) -> None:
        class Language(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding, self.body, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5)

            def get_output_embeddings(self) -> nn.Module:
                return self.head

        model = get_rst_model(Language(), RSTConfig(threshold=0.0, target_modules="all-linear"))
        assert {name for name, one in model.base_model.named_parameters() if one.requires_grad} == {
            "body.weight",
            "body.bias",
        }
        plain = get_rst_model(
            network(), RSTConfig(threshold=0.0, target_modules="all-linear", exclude_modules=["bias"])
        )
        assert plain.trainer is not None
        assert set(plain.trainer.tracked.sparse) == {"0.weight", "2.weight"}
        with pytest.raises(ConfigError):
            get_rst_model(nn.Sequential(nn.Conv2d(3, 3, 1)), RSTConfig(target_modules="all-linear"))


class TestWeightedAdapters:
    def test_the_head_of_one(self) -> None:
        model = RSTModel(network())
        for seed, name in enumerate("ab"):
            model.add_adapter(name, delta_of(seed))
        with pytest.raises(ParameterMismatchError):
            model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both")
        with pytest.raises(ConfigError):
            model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both", whole_from="c")
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both", whole_from="b")
        both, heads = model.get_delta("both"), delta_of(1).dense
        assert both.dense.keys() == heads.keys()
        assert all(torch.equal(both.dense[name], head) for name, head in heads.items())
        assert both["0.weight"].indices.tolist() == list(range(16))
        assert torch.allclose(both["0.weight"].values, torch.tensor(0.5))


class TestReferencePasses:
    def step(self, model: Any, images: Tensor, reference_first: bool) -> dict[str, Tensor]:
        """Gradients of a loss that compares with the base, which DPO's and other losses do."""

        def reference() -> Tensor:
            with torch.no_grad(), model.disable_adapter():
                output: Tensor = model(images)
                return output

        before = reference() if reference_first else None
        policy = model(images)
        (policy - (reference() if before is None else before)).square().sum().backward()
        return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}

    @pytest.mark.parametrize("every", [0, 1])
    def test_between_forward_and_backward(self, every: int) -> None:
        models = [get_rst_model(network(), RSTConfig(threshold=1e-2, every=every)) for _ in range(2)]
        for model in models:
            with torch.no_grad():
                model.base_model[0].weight.add_(torch.linspace(-0.1, 0.1, 128).view(16, 8))
        before = copy.deepcopy(models[0].base_model.state_dict())
        found, wanted = (
            self.step(model, torch.ones(1, 8), first) for model, first in zip(models, (False, True), strict=True)
        )
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in found)
        for name, tensor in models[0].base_model.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def test_a_graph_of_the_base_is_not_mistaken_for_one_of_the_adapter(self) -> None:
        model = get_rst_model(network(), RSTConfig(threshold=0.0))
        with torch.no_grad():
            model.base_model[0].weight += 1
        with model.disable_adapter():
            images = torch.ones(1, 8, requires_grad=True)
            reference = model(images).sum()
        for _ in range(3):
            with pytest.raises(RuntimeError, match="inplace"):
                reference.backward(retain_graph=True)
            with torch.no_grad():
                model.base_model[0].weight += 1

    def test_what_the_user_froze_stays_frozen(self) -> None:
        model = get_rst_model(network(), RSTConfig(threshold=0.0))
        model.base_model[0].requires_grad_(False)
        with model.disable_adapter():
            assert not any(parameter.requires_grad for parameter in model.parameters())
        trains = {name for name, one in model.base_model.named_parameters() if one.requires_grad}
        assert trains == {"2.weight", "2.bias"}

    def test_a_delta_of_one_that_stepped_aside(self) -> None:
        model = get_rst_model(network(), RSTConfig(threshold=1e-2), "new")
        with torch.no_grad():
            model.base_model[0].weight.add_(1)
        model.disable_adapters()
        model.add_adapter("stored", delta_of(1))
        model.set_adapter("stored")
        before = copy.deepcopy(model.base_model.state_dict())
        assert model.get_delta("new").nnz == 128
        for name, tensor in model.base_model.state_dict().items():
            assert torch.equal(tensor, before[name]), name


class TestNamesInABatch:
    def test_inside_disable_adapter_all_are_the_base(self, folder: Path) -> None:
        base = network()
        model, inputs = RSTModel.from_pretrained(network(), folder), torch.randn(2, 8)
        with model.disable_adapter():
            assert torch.equal(model(inputs, adapter_names=["default", "__base__"]), base(inputs))
            with pytest.raises(ConfigError):
                model(inputs, adapter_names=["default", "typo"])
        assert not torch.equal(model(inputs, adapter_names=["default", "__base__"]), base(inputs))

    @pytest.mark.parametrize("beams", [{}, {"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 2}])
    def test_generate(self, beams: dict[str, int]) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        sizes = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
        special = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
        base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **special)).eval()
        tuned = copy.deepcopy(base)
        with torch.no_grad():
            for layer in tuned.transformer.h:
                layer.mlp.c_fc.weight += torch.randn_like(layer.mlp.c_fc.weight)
        model = RSTModel(copy.deepcopy(base)).eval()
        model.add_adapter("a", export(base, tuned))
        ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
        settings = {"max_new_tokens": 4, "do_sample": False, **beams}

        def alone(one: nn.Module, sample: int) -> Tensor:
            output: Tensor = one.generate(ids[sample : sample + 1], attention_mask=torch.ones(1, 3), **settings)
            return output

        found = model.generate(ids, attention_mask=torch.ones(2, 3), adapter_names=["__base__", "a"], **settings)
        assert torch.equal(found, torch.cat([alone(base, 0), alone(tuned, 1)]))
        assert torch.equal(alone(model, 1), alone(tuned, 1))


class TestAutoModel:
    def test_loads_the_base_that_the_folder_names(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        torch.manual_seed(0)
        config = transformers.BertConfig(vocab_size=10, max_position_embeddings=8, **sizes)
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "base")
        model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
        trained = get_rst_model(model, RSTConfig(threshold=0.0))
        with torch.no_grad():
            model.classifier.weight += 1
        trained.save_pretrained(tmp_path / "adapter")
        loaded = AutoRSTModel.from_pretrained(tmp_path / "adapter")
        assert type(loaded.base_model) is type(model)
        assert torch.equal(loaded.classifier.weight, model.classifier.weight)
        assert not loaded.training

    def test_of_a_base_without_a_name(self, folder: Path) -> None:
        with refused(CheckpointError, "RSTModel.from_pretrained", file=folder / "rst_config.json"):
            AutoRSTModel.from_pretrained(folder)
        with pytest.raises(ConfigError):
            AutoRSTModel.from_pretrained(folder / "delta.safetensors")

    def test_of_a_base_that_is_not_there(self, folder: Path) -> None:
        pytest.importorskip("transformers")
        file = folder / "rst_config.json"
        missing = str(folder / "no" / "such" / "base")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": missing}))
        with pytest.raises(CheckpointError) as caught:
            AutoRSTModel.from_pretrained(folder)
        assert missing in str(caught.value)
