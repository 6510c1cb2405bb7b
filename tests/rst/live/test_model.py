"""PEFT's verbs: what is in the weights after each of them, bit for bit, and what they refuse."""

import copy
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import (
    CheckpointError,
    ConfigError,
    DeltaFormatError,
    ParameterMismatchError,
    ResidualSparseTrainer,
    RSTConfig,
    RSTModel,
    RSTWarning,
    SparseDelta,
    WrongBaseError,
    export,
    get_rst_model,
)


class Network(nn.Module):
    """A convolution, BatchNorm's buffers, tied weights and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Linear(8, 8)
        self.tied = self.body
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images)).mean(dim=(2, 3))
        logits: Tensor = self.head(self.tied(self.body(features)))
        return logits


@pytest.fixture
def base() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def tuned_from(base: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            moved = torch.rand(parameter.shape, generator=generator) < 0.2
            parameter += moved * 0.1 * torch.randn(parameter.shape, generator=generator)
    return tuned


def delta_between(base: nn.Module, tuned: nn.Module) -> SparseDelta:
    return export(base.state_dict(), tuned.state_dict())


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_holds(model: nn.Module, wanted: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes(), name


@pytest.fixture
def domains(base: Network) -> dict[str, nn.Module]:
    return {name: tuned_from(base, seed) for seed, name in enumerate(["art", "photo"], start=1)}


@pytest.fixture
def model(base: Network, domains: dict[str, nn.Module]) -> RSTModel:
    wrapped = RSTModel(base)
    deltas = {name: delta_between(base, tuned) for name, tuned in domains.items()}
    for name, delta in deltas.items():
        wrapped.add_adapter(name, delta)
    return wrapped


class TestSwitching:
    def test_first_adapter_is_active_and_others_take_its_place(
        self, model: RSTModel, base: Network, domains: dict[str, nn.Module]
    ) -> None:
        assert model.active_adapter == "art"
        assert_holds(base, snapshot(domains["art"]))
        model.set_adapter("photo")
        assert model.active_adapters == ["photo"]
        assert_holds(base, snapshot(domains["photo"]))

    def test_disable_adapter_is_the_base_and_then_the_adapter_again(
        self, base: Network, domains: dict[str, nn.Module]
    ) -> None:
        untouched = snapshot(base)
        model = RSTModel(base)
        model.add_adapter("art", delta_between(base, domains["art"]))
        with model.disable_adapter():
            assert_holds(base, untouched)
            with model.disable_adapter():
                assert_holds(base, untouched)
            assert_holds(base, untouched)
        assert_holds(base, snapshot(domains["art"]))
        with pytest.raises(KeyError), model.disable_adapter():
            raise KeyError
        assert_holds(base, snapshot(domains["art"]))

    def test_set_adapter_inside_disable_adapter_wins(
        self, model: RSTModel, base: Network, domains: dict[str, nn.Module]
    ) -> None:
        with model.disable_adapter():
            model.set_adapter("photo")
            assert_holds(base, snapshot(domains["photo"]))
        assert_holds(base, snapshot(domains["photo"]))

    def test_disabled_until_enabled(self, model: RSTModel, base: Network, domains: dict[str, nn.Module]) -> None:
        model.disable_adapters()
        with model.disable_adapter():
            pass
        model.add_adapter("more", delta_between(base, domains["photo"]))
        assert not model.get_model_status().enabled
        model.enable_adapters()
        assert_holds(base, snapshot(domains["art"]))

    def test_deleting_the_active_adapter_leaves_the_base(self, base: Network, domains: dict[str, nn.Module]) -> None:
        untouched = snapshot(base)
        model = RSTModel(base)
        model.add_adapter("art", delta_between(base, domains["art"]))
        model.delete_adapter("art")
        assert_holds(base, untouched)
        assert model.active_adapter is None
        assert model.adapter_names == []

    def test_deleting_the_active_adapter_activates_the_first_that_is_left(
        self, model: RSTModel, base: Network, domains: dict[str, nn.Module]
    ) -> None:
        model.delete_adapter("art")
        assert model.active_adapters == ["photo"]
        assert_holds(base, snapshot(domains["photo"]))

    def test_unknown_taken_and_reserved_names(self, model: RSTModel, base: Network) -> None:
        delta = model.get_delta("art")
        with pytest.raises(ConfigError, match=r"'sketch'.*'art', 'photo'"):
            model.set_adapter("sketch")
        with pytest.raises(ConfigError, match="'art' is already loaded"):
            model.add_adapter("art", delta)
        with pytest.raises(ConfigError, match="__base__"):
            model.add_adapter("__base__", delta)
        with pytest.raises(ConfigError, match="add_weighted_adapter"):
            model.set_adapter(["art", "photo"])  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="no adapter is active"):
            RSTModel(copy.deepcopy(base)).merge_and_unload()
        assert model.active_adapter == "art"

    def test_refused_adapter_leaves_the_active_one(
        self, model: RSTModel, base: Network, domains: dict[str, nn.Module]
    ) -> None:
        with torch.no_grad():
            other = copy.deepcopy(base)
            for parameter in other.parameters():
                parameter += 1
        stranger = delta_between(other, tuned_from(other, seed=5))
        with pytest.raises(WrongBaseError):
            model.add_adapter("stranger", stranger)
        assert model.adapter_names == ["art", "photo"]
        assert_holds(base, snapshot(domains["art"]))
        with pytest.raises(WrongBaseError):
            model._bank.replace("art", stranger)
        assert_holds(base, snapshot(domains["art"]))

    def test_base_that_was_trained_meanwhile_refuses_the_next_adapter(self, model: RSTModel, base: Network) -> None:
        model.disable_adapters()
        with torch.no_grad():
            for parameter in base.parameters():
                parameter += 1
        before = snapshot(base)
        with pytest.raises(WrongBaseError):
            model.set_adapter("photo")
        assert_holds(base, before)

    def test_adapter_before_stays_where_the_next_is_refused(self, base: Network, domains: dict[str, nn.Module]) -> None:
        tuned = copy.deepcopy(base)
        with torch.no_grad():
            tuned.conv.weight += 1
        model = RSTModel(base)
        model.add_adapter("conv", delta_between(base, tuned).sparse_only())
        with model.disable_adapter():
            head_only = copy.deepcopy(base)
            with torch.no_grad():
                head_only.head.weight += 1
            model.add_adapter("head", delta_between(base, head_only))
        with torch.no_grad():
            base.head.weight += 2
        before = snapshot(base)
        with pytest.raises(WrongBaseError):
            model.set_adapter("head")
        assert model.active_adapter == "conv"
        assert_holds(base, before)


class TestForward:
    def test_output_is_the_tuned_models(self, model: RSTModel, base: Network, domains: dict[str, nn.Module]) -> None:
        images = torch.randn(2, 3, 8, 8)
        for name, tuned in domains.items():
            model.set_adapter(name)
            assert torch.equal(model(images), tuned(images))

    def test_base_models_attributes_are_found(self, model: RSTModel, base: Network) -> None:
        assert model.head is base.head
        assert model.get_base_model() is base
        with pytest.raises(AttributeError, match="tail"):
            _ = model.tail

    @pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
    def test_switching_does_not_recompile(self, model: RSTModel, domains: dict[str, nn.Module]) -> None:
        compilations = []

        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
            compilations.append(graph)
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend)
        images = torch.randn(2, 3, 8, 8)
        with torch.no_grad():
            first = compiled(images)
            after_first = len(compilations)
            for _ in range(3):
                for name in ("photo", "art"):
                    model.set_adapter(name)
                    torch.testing.assert_close(compiled(images), domains[name](images))
                with model.disable_adapter():
                    assert not torch.equal(compiled(images), first)
        assert after_first >= 1
        assert len(compilations) == after_first


class TestMovesAndCasts:
    def test_cast_is_that_of_the_tuned_model_and_of_the_base(
        self, model: RSTModel, base: Network, domains: dict[str, nn.Module]
    ) -> None:
        with model.disable_adapter():
            plain = copy.deepcopy(base).to(torch.bfloat16)
        model.to(torch.bfloat16)
        for name in ("art", "photo", "art"):
            model.set_adapter(name)
            wanted = domains[name].to(torch.bfloat16)
            for key, tensor in wanted.state_dict().items():
                assert torch.equal(base.state_dict()[key], tensor), key
        with model.disable_adapter():
            for key, tensor in plain.state_dict().items():
                assert torch.equal(base.state_dict()[key], tensor), key

    def test_same_dtype_keeps_the_residuals(self, model: RSTModel, base: Network) -> None:
        before = model.get_delta("art")
        model.to("cpu").float()
        assert model.get_delta("art") is before

    def test_memory_that_moves_is_found_again(
        self, model: RSTModel, base: Network, domains: dict[str, nn.Module]
    ) -> None:
        model._apply(torch.clone)
        assert_holds(base, snapshot(domains["art"]))
        model.set_adapter("photo")
        assert_holds(base, snapshot(domains["photo"]))


class TestFolders:
    def test_default_goes_into_the_folder_itself(
        self, base: Network, domains: dict[str, nn.Module], tmp_path: Path
    ) -> None:
        model = RSTModel(base)
        model.add_adapter("default", delta_between(base, domains["photo"]))
        model.save_pretrained(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "delta.safetensors", "rst_config.json"]
        model.unload()
        again = RSTModel.from_pretrained(base, tmp_path)
        assert again.active_adapter == "default"
        assert_holds(base, snapshot(domains["photo"]))

    def test_others_go_below_by_name(self, model: RSTModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path, encoding="packed")
        assert SparseDelta.load(tmp_path / "art" / "delta.safetensors") == model.get_delta("art")
        model.save_pretrained(tmp_path / "one", ["photo"])
        assert [path.name for path in (tmp_path / "one").iterdir()] == ["photo"]

    @pytest.mark.parametrize("name", ["../out", "a/b", "..", "a\\b", "/etc"])
    def test_no_name_leads_out_of_the_folder(self, base: Network, model: RSTModel, name: str, tmp_path: Path) -> None:
        model.disable_adapters()
        model.add_adapter(name, model.get_delta("art"))
        with pytest.raises(ConfigError, match="cannot be that of a folder"):
            model.save_pretrained(tmp_path / "inside")
        assert not (tmp_path / "inside").exists()

    def test_card_has_what_the_hub_reads(self, model: RSTModel, tmp_path: Path) -> None:
        delta = model.get_delta("art")
        model.save_pretrained(tmp_path, ["art"])
        card = (tmp_path / "art" / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: rst\n")
        assert f"{delta.nnz:,} of {delta.base.weights:,} weights" in card
        (tmp_path / "art" / "README.md").write_text("mine")
        model.save_pretrained(tmp_path, ["art"])
        assert (tmp_path / "art" / "README.md").read_text() == "mine"

    def test_missing_and_damaged_folders(self, base: Network, model: RSTModel, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="rst_config.json"):
            model.load_adapter(tmp_path, "new")
        model.save_pretrained(tmp_path, ["art"])
        config = tmp_path / "art" / "rst_config.json"
        content = json.loads(config.read_text())
        config.write_text(json.dumps(content | {"format_version": 9}))
        with pytest.raises(DeltaFormatError, match=r"rst_config.json.*version 9"):
            model.load_adapter(tmp_path / "art", "new")
        config.write_text("{")
        with pytest.raises(DeltaFormatError, match=r"rst_config.json.*malformed"):
            model.load_adapter(tmp_path / "art", "new")
        config.write_text(json.dumps(content))
        (tmp_path / "art" / "delta.safetensors").unlink()
        with pytest.raises(CheckpointError, match="delta.safetensors"):
            model.load_adapter(tmp_path / "art", "new")
        assert model.adapter_names == ["art", "photo"]

    def test_hotswap_exchanges_the_active_one(
        self, model: RSTModel, base: Network, domains: dict[str, nn.Module], tmp_path: Path
    ) -> None:
        model.save_pretrained(tmp_path)
        model.hotswap_adapter(tmp_path / "photo", adapter_name="art")
        assert model.active_adapter == "art"
        assert_holds(base, snapshot(domains["photo"]))
        with pytest.raises(ConfigError, match="sketch"):
            model.hotswap_adapter(tmp_path / "photo", adapter_name="sketch")

    def test_hotswap_ends_the_training_of_the_one_it_replaces(
        self, model: RSTModel, base: Network, domains: dict[str, nn.Module], tmp_path: Path
    ) -> None:
        model.save_pretrained(tmp_path)
        model.add_adapter("new", RSTConfig(threshold=1e-6, target_modules=["body"]))
        optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
        assert model.trainer is not None
        model.trainer.attach(optimizer)
        model.hotswap_adapter(tmp_path / "photo", adapter_name="new")
        assert model.trainer is None
        assert all(parameter.requires_grad for parameter in base.parameters())
        base(torch.randn(2, 3, 5, 5)).sum().backward()
        optimizer.step()  # the trainer's hook would put w0 back
        assert not torch.equal(base.body.weight, domains["photo"].body.weight)

    def test_an_adapter_has_a_name(self, model: RSTModel) -> None:
        with pytest.raises(ConfigError, match="name"):
            model.add_adapter("", RSTConfig(threshold=1e-6))
        assert model.adapter_names == ["art", "photo"]

    def test_subfolder(self, model: RSTModel, base: Network, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        model.load_adapter(tmp_path, "again", subfolder="photo")
        assert model.get_delta("again") == model.get_delta("photo")


class TestMerging:
    def test_merge_and_unload(self, model: RSTModel, base: Network, domains: dict[str, nn.Module]) -> None:
        assert model.merge_and_unload(["photo"]) is base
        assert_holds(base, snapshot(domains["photo"]))
        assert model.adapter_names == []

    def test_unload_restores_every_byte(self, base: Network, domains: dict[str, nn.Module]) -> None:
        untouched = snapshot(base)
        model = RSTModel(base)
        model.add_adapter("art", delta_between(base, domains["art"]))
        assert model.unload() is base
        assert_holds(base, untouched)

    def test_merge_and_unmerge(self, model: RSTModel, base: Network, domains: dict[str, nn.Module]) -> None:
        model.unmerge_adapter()
        model.merge_adapter(["photo"])
        assert_holds(base, snapshot(domains["photo"]))
        with pytest.raises(ConfigError, match="one adapter"):
            model.merge_adapter(["art", "photo"])

    def test_weighted_adapter_is_the_weighted_sum(self, model: RSTModel, base: Network) -> None:
        deltas = [model.get_delta(name) for name in ("art", "photo")]
        model.add_weighted_adapter(["art", "photo"], [0.5, 0.5], "mean")
        model.disable_adapters()
        origin = snapshot(base)
        model.set_adapter("mean")
        for name, tensor in base.named_parameters():
            total = origin[name].double()
            for delta in deltas:
                if name in delta:
                    total = total + 0.5 * delta[name].to_coo().to_dense().double()
            torch.testing.assert_close(tensor.detach().double(), total, rtol=0, atol=1e-6)


def saved_and_loaded(model: RSTModel) -> RSTModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: RSTModel = torch.load(file, weights_only=False)
    return loaded


class TestCopies:
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("enabled", [False, True])
    @pytest.mark.parametrize(
        "copied",
        [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded],
        ids=["deepcopy", "pickle", "torch.save"],
    )
    def test_a_copy_has_its_own_weights_and_adapters(
        self,
        model: RSTModel,
        base: Network,
        domains: dict[str, nn.Module],
        copied: Any,
        enabled: bool,
        channels_last: bool,
    ) -> None:
        if channels_last:
            model.to(memory_format=torch.channels_last)
        if not enabled:
            model.disable_adapters()
        other = copied(model)
        before = snapshot(base)
        for name in ("photo", "art"):
            other.set_adapter(name)
            assert_holds(other.base_model, snapshot(domains[name]))
        assert_holds(base, before)
        other.unload()
        model.disable_adapters()
        assert_holds(other.base_model, snapshot(base))

    def test_a_copy_in_training_goes_on_by_itself(self, base: Network) -> None:
        model = get_rst_model(base, RSTConfig(threshold=1e-3))
        pristine = snapshot(base)
        assert model.trainer is not None
        optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
        model.trainer.attach(optimizer)
        other = copy.deepcopy(model)
        assert other.trainer is not None
        other.trainer.attach(torch.optim.SGD(other.base_model.parameters(), lr=0.1))
        for parameter in base.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert (model.trainer.steps, other.trainer.steps) == (1, 0)
        assert other.get_delta().nnz == 0
        model.disable_adapters()
        assert_holds(base, pristine)

    def test_the_copying_of_the_base_is_not_taken_for_the_models(self) -> None:
        traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))  # has a __deepcopy__ of its own
        assert isinstance(copy.deepcopy(RSTModel(traced)), RSTModel)


class TestTraining:
    def train(self, model: RSTModel, steps: int) -> None:
        generator = torch.Generator().manual_seed(1)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=0.05)
        assert model.trainer is not None
        model.trainer.attach(optimizer)
        for _ in range(steps):
            images = torch.randn(8, 3, 8, 8, generator=generator)
            loss = nn.functional.cross_entropy(model(images), torch.arange(8) % 4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.trainer.detach()

    def test_saved_adapter_reproduces_the_training(self, base: Network, tmp_path: Path) -> None:
        fresh = copy.deepcopy(base)
        model = get_rst_model(base, RSTConfig(threshold=1e-3, modules_to_save=["head"]))
        self.train(model, steps=5)
        model.save_pretrained(tmp_path)
        assert model.get_delta().nnz > 0
        again = RSTModel.from_pretrained(fresh, tmp_path)
        assert_holds(fresh, snapshot(base))
        images = torch.randn(2, 3, 8, 8)
        assert torch.equal(again(images), model(images))
        assert again.trainer is None

    def test_training_adapter_steps_aside_and_goes_on(self, base: Network) -> None:
        pristine = copy.deepcopy(base)
        alone = get_rst_model(copy.deepcopy(base), RSTConfig(threshold=1e-3, modules_to_save=["head"]))
        self.train(alone, steps=3)
        self.train(alone, steps=3)

        model = get_rst_model(base, RSTConfig(threshold=1e-3, modules_to_save=["head"]))
        self.train(model, steps=3)
        with model.disable_adapter():
            assert_holds(base, snapshot(pristine))
        model.add_adapter("other", delta_between(pristine, tuned_from(pristine, seed=3)))
        model.set_adapter("other")
        assert not any(parameter.requires_grad for parameter in base.head.parameters())
        model.set_adapter("default")
        self.train(model, steps=3)
        assert_holds(base, snapshot(alone.base_model))

    def test_what_the_user_froze_meanwhile_stays_frozen(self, base: Network) -> None:
        model = get_rst_model(base, RSTConfig(threshold=1e-6))
        base.head.requires_grad_(False)
        with model.disable_adapter():
            assert not any(parameter.requires_grad for parameter in base.parameters())
        assert not base.head.weight.requires_grad
        assert base.body.weight.requires_grad

    def test_optimiser_that_steps_while_training_is_off_is_refused(self, base: Network) -> None:
        model = get_rst_model(base, RSTConfig(threshold=1e-3))
        optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
        assert isinstance(model.trainer, ResidualSparseTrainer)
        model.trainer.attach(optimizer)
        with (
            model.disable_adapter(),
            pytest.raises(ConfigError, match="while the adapter in training was switched off"),
        ):
            optimizer.step()

    def test_from_pretrained_goes_on_training(self, base: Network, tmp_path: Path) -> None:
        fresh, pristine = copy.deepcopy(base), copy.deepcopy(base)
        model = get_rst_model(base, RSTConfig(threshold=1e-3, modules_to_save=["head"]))
        self.train(model, steps=3)
        model.save_pretrained(tmp_path)
        self.train(model, steps=3)
        again = RSTModel.from_pretrained(fresh, tmp_path, is_trainable=True)
        self.train(again, steps=3)
        assert_holds(fresh, snapshot(base))
        again.save_pretrained(tmp_path / "second")
        RSTModel.from_pretrained(pristine, tmp_path / "second")
        assert_holds(pristine, snapshot(base))

    def test_settings_that_were_edited_beside_the_delta_are_warned_of_and_not_used(
        self, base: Network, tmp_path: Path
    ) -> None:
        fresh = copy.deepcopy(base)
        model = get_rst_model(base, RSTConfig(threshold=1e-3))
        self.train(model, steps=3)
        model.save_pretrained(tmp_path)
        settings = json.loads((tmp_path / "rst_config.json").read_text())
        settings["config"] |= {"threshold": 0.5, "more": 1}
        (tmp_path / "rst_config.json").write_text(json.dumps(settings))
        with pytest.warns(RSTWarning, match=r"rst_config\.json .*\b2 "):
            again = RSTModel.from_pretrained(fresh, tmp_path, is_trainable=True)
        assert isinstance(again.trainer, ResidualSparseTrainer)
        assert again.trainer.config.threshold == 1e-3

    def test_a_delta_without_settings_cannot_go_on_training(
        self, base: Network, domains: dict[str, nn.Module], tmp_path: Path
    ) -> None:
        stored = RSTModel(copy.deepcopy(base))
        stored.add_adapter("art", replace(delta_between(base, domains["art"]), config={}))
        stored.save_pretrained(tmp_path)
        before = snapshot(base)
        with pytest.raises(ConfigError, match="default: the delta contains no settings"):
            RSTModel.from_pretrained(base, tmp_path / "art", is_trainable=True)
        assert_holds(base, before)

    def test_merged_for_good_is_what_the_delta_would_give(self, base: Network) -> None:
        pristine = copy.deepcopy(base)
        model = get_rst_model(base, RSTConfig(threshold=3e-3, every=0))
        self.train(model, steps=2)
        merged = model.merge_and_unload()
        moved = [
            (tuned - origin).abs() for tuned, origin in zip(merged.parameters(), pristine.parameters(), strict=True)
        ]
        assert all(bool(((change == 0) | (change > 2.9e-3)).all()) for change in moved)
        assert any(bool((change > 0).any()) for change in moved)

    def test_print_trainable_parameters(self, base: Network, capsys: pytest.CaptureFixture[str]) -> None:
        model = get_rst_model(base, RSTConfig(threshold=1e-3, target_modules=["body"]))
        model.print_trainable_parameters()
        total = sum(parameter.numel() for parameter in base.parameters())
        assert f"trainable params: 72 || all params: {total:,}" in capsys.readouterr().out
        assert model.get_model_status().in_training == ["default"]

    def test_looking_leaves_the_weights_alone(self, base: Network) -> None:
        model = get_rst_model(base, RSTConfig(threshold=1e-2, every=0, modules_to_save=["norm"]))
        with torch.no_grad():
            base.head.weight[0] += 1e-3
        before = snapshot(base)
        assert model.get_model_status().stored_params == {"default": 8 + 8 + 8}
        assert_holds(base, before)
        with torch.no_grad():
            base.head.weight[0] += 1
        stored = model.get_delta().dsp()
        assert model.get_model_status().stored_params == {"default": stored}
        model.disable_adapters()
        assert model.get_model_status().stored_params == {"default": stored}

    def test_adapters_are_trained_one_after_another(self, base: Network) -> None:
        pristine = copy.deepcopy(base)
        base.norm.bias.requires_grad_(False)
        model = get_rst_model(base, RSTConfig(threshold=1e-3, target_modules=["head"]), "first")
        self.train(model, steps=2)
        first = snapshot(base)
        model.add_adapter("second", RSTConfig(threshold=1e-3, target_modules=["body"]))
        trains = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
        assert trains == {"body.weight", "body.bias"}
        with torch.no_grad():
            base.body.weight += 1
        assert set(model.get_delta("second")) == {"body.weight"}
        model.set_adapter("first")
        assert_holds(base, first)
        trains = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
        assert trains == {"head.weight", "head.bias"}
        with pytest.raises(ConfigError, match="third|matches no parameter"):
            model.add_adapter("bad", RSTConfig(target_modules=["third"]))
        assert model.active_adapter == "first"
        assert {name for name, parameter in base.named_parameters() if parameter.requires_grad} == trains
        self.train(model, steps=1)
        model.delete_adapter("first")
        trains = {name for name, parameter in base.named_parameters() if parameter.requires_grad}
        assert trains == {"body.weight", "body.bias"}
        model.delete_adapter("second")
        left = {name for name, parameter in base.named_parameters() if not parameter.requires_grad}
        assert left == {"norm.bias"}
        model.disable_adapters()
        for name, parameter in pristine.named_parameters():
            assert torch.equal(base.get_parameter(name), parameter), name

    @pytest.mark.parametrize("way", ["unload", "merge_and_unload", "delete"])
    def test_what_training_froze_trains_again_afterwards(self, base: Network, way: str) -> None:
        model = get_rst_model(base, RSTConfig(threshold=1e-3, target_modules=["body"]))
        assert model.trainer is not None
        optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
        model.trainer.attach(optimizer)
        model.delete_adapter("default") if way == "delete" else getattr(model, way)()
        assert all(parameter.requires_grad for parameter in base.parameters())
        optimizer.step()  # nobody follows it any more

    def test_no_other_dtype_in_training(self, base: Network) -> None:
        model = RSTModel(base)
        model.add_adapter("stored", delta_between(base, tuned_from(base, seed=1)))
        model.add_adapter("new", RSTConfig(threshold=1e-3))
        before = model.get_delta("stored")
        with pytest.raises(ConfigError, match="being trained as torch.float32, so it cannot be cast to torch.bfloat16"):
            model.to(torch.bfloat16)
        assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}
        assert model.get_delta("stored") is before
        assert model.active_adapter == "new"
        model.to(torch.float32)

    def test_other_shape_is_refused(self, base: Network, model: RSTModel) -> None:
        other = nn.Linear(8, 3)
        with pytest.raises(ParameterMismatchError):
            RSTModel(other).add_adapter("art", model.get_delta("art"))
