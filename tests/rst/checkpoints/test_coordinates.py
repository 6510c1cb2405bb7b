"""Live models of transformers and their folders: a delta of the one fits the other, bit for bit, both ways."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rst import ResidualSparseTrainer, RSTConfig, SparseDelta, export, merge
from rst.checkpoints.coordinates import Coordinates, FileTensor
from rst.checkpoints.delta_in_module import in_module
from rst.checkpoints.layout_trace import TracedTensor
from rst.checkpoints.transformers_files import coordinates_of
from rst.errors import NotCarriedError, ParameterMismatchError, WrongBaseError
from rst.live.apply import said_in_module
from tests.rst.checkpoints import tiny_models
from tests.rst.checkpoints.tiny_models import RENAMING, built, llava, mixtral, same_weights, stepped, vit

pytestmark = pytest.mark.filterwarnings("ignore:The .vocab_size. attribute is deprecated:FutureWarning")  # 4.44
FAST = (vit, mixtral, llava)
TEXT_MODELS = ("qwen3_moe", "deepseek_v3", "olmoe", "gpt_neox", "llama", "bert", "gpt2")
ALL = (*TEXT_MODELS, "dinov2", "segformer", "qwen2_vl", "gemma3", "paligemma", "detr")
SLOW = [pytest.param(getattr(tiny_models, name), marks=pytest.mark.slow) for name in ALL]
LOADED = [True, pytest.param(False, marks=pytest.mark.slow)]


def trained(model: PreTrainedModel) -> SparseDelta:
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-6))
    optimizer = stepped(model)
    trainer.attach(optimizer)
    optimizer.step()
    return trainer.export()


@pytest.mark.parametrize("build", [*FAST, *SLOW])
@pytest.mark.parametrize("loaded", LOADED, ids=["loaded", "built"])
def test_live_and_folder(build: Callable[[], PreTrainedModel], loaded: bool, tmp_path: Path) -> None:
    model = built(build)
    model.save_pretrained(tmp_path / "base")
    if loaded:
        model = type(model).from_pretrained(tmp_path / "base")
    base = copy.deepcopy(model)
    trained(model).save(tmp_path / "delta.safetensors")

    delta = SparseDelta.load(tmp_path / "delta.safetensors")
    merge(tmp_path / "base", delta, tmp_path / "tuned")
    assert same_weights(type(model).from_pretrained(tmp_path / "tuned"), model)

    of_folders = export(tmp_path / "base", tmp_path / "tuned")
    assert delta.parameters == of_folders.parameters
    for live in (export(base, model), export(tmp_path / "base", model), export(base, tmp_path / "tuned")):
        assert live.parameters == of_folders.parameters
    applied = of_folders.apply(base)
    assert same_weights(base, model)
    applied.remove()
    assert same_weights(base, type(model).from_pretrained(tmp_path / "base"))


@pytest.mark.parametrize("name", ["qwen2_vl", "llava", "gemma3", "paligemma", "bert", "gpt2", "llama"])
def test_the_part_below_a_head_has_the_names_of_the_files_with_the_head(name: str, tmp_path: Path) -> None:
    headed = built(getattr(tiny_models, name))
    headed.save_pretrained(tmp_path / "base")
    part = type(getattr(headed, headed.base_model_prefix)) if headed.base_model is not headed else type(headed)
    model = part.from_pretrained(tmp_path / "base")
    base = copy.deepcopy(model)
    trained(model).save(tmp_path / "delta.safetensors")
    merge(tmp_path / "base", tmp_path / "delta.safetensors", tmp_path / "tuned")
    assert same_weights(part.from_pretrained(tmp_path / "tuned"), model)
    with SparseDelta.load(tmp_path / "delta.safetensors").apply(base):
        assert same_weights(base, model)


def fused_pair() -> tuple[nn.Module, Coordinates]:
    """A module with q and k apart, whose files have them in one; a scale that the files hold doubled."""
    module = nn.ParameterDict({name: nn.Parameter(torch.randn(2, 3)) for name in ("q", "k")} | {"v": torch.randn(2)})
    return module, Coordinates(
        {
            "qk": FileTensor("qk", ("q", "k"), (4, 3), moved=True),
            "half_v": FileTensor("half_v", ("v",), (2,), computed="mul"),
        },
        lambda tensors: {"qk": torch.cat([tensors["q"], tensors["k"]])},
        lambda name: [f"old.{name}"],
    )


def test_one_tensor_of_the_files_for_two_of_the_module() -> None:
    module, coordinates = fused_pair()
    live: dict[str, Tensor] = dict(module.named_parameters())
    base = {"qk": coordinates.to_files(live)["qk"].clone()}
    tuned = base["qk"].clone()
    tuned[0, 1], tuned[3] = 5, torch.tensor([1.0, base["qk"][3, 1], -0.0])
    delta = export(base, {"qk": tuned})

    own = in_module(delta, coordinates, live)
    assert {name: change.indices.tolist() for name, change in own.items()} == {"q": [1], "k": [3, 5]}
    assert own["q"].op == "replace"
    assert own["k"].values.tolist() == [1.0, -0.0]
    assert in_module(own, coordinates, live) is own

    live["k"].data[1, 0] += 1
    with pytest.raises(WrongBaseError) as caught:
        in_module(delta, coordinates, live)
    assert caught.value.parameter == "qk"


def test_whole_tensors_of_the_files_are_whole_in_the_module() -> None:
    module, coordinates = fused_pair()
    live: dict[str, Tensor] = dict(module.named_parameters())
    own = in_module(SparseDelta({}, dense={"qk": torch.arange(12.0).view(4, 3)}), coordinates, live)
    assert own.dense["k"].tolist() == [[6, 7, 8], [9, 10, 11]]


def test_bad_deltas_are_refused_before_anything_is_moved() -> None:
    module, coordinates = fused_pair()
    live: dict[str, Tensor] = dict(module.named_parameters())
    with pytest.raises(NotCarriedError, match="mul") as computed:
        in_module(SparseDelta({}, dense={"half_v": torch.zeros(2)}), coordinates, live)
    assert computed.value.parameter == "half_v"
    with pytest.raises(NotCarriedError, match="mul"):
        coordinates.to_files(live)["half_v"]
    with pytest.raises(ParameterMismatchError, match=r"\(3, 4\)") as shape:
        in_module(SparseDelta({}, dense={"qk": torch.zeros(3, 4)}), coordinates, live)
    assert shape.value.parameter == "qk"
    with pytest.raises(ParameterMismatchError) as dtype:
        in_module(SparseDelta({}, dense={"qk": torch.zeros(4, 3, dtype=torch.bfloat16)}), coordinates, live)
    assert dtype.value.parameter == "qk"
    assert "delta.to(dtype=torch.float32)" in str(dtype.value)
    assert "delta.to" not in str(shape.value)
    twice = {"qk": torch.zeros(4, 3), "old.qk": torch.zeros(4, 3)}
    renamed = replace(coordinates, spellings=lambda name: [name.removeprefix("old.")])
    with pytest.raises(ParameterMismatchError) as both:
        in_module(SparseDelta({}, dense=twice), renamed, live)
    assert both.value.parameter == "old.qk"


def test_a_trace_follows_layout_and_names_what_computes() -> None:
    one, other = TracedTensor.of("one", torch.zeros(2, 4)), TracedTensor.of("other", torch.zeros(2, 4))
    stacked = torch.stack([one.transpose(0, 1).contiguous(), other.reshape(4, 2)])[1]
    assert (stacked.sources, stacked.computed, stacked.changed) == (("one", "other"), None, True)
    assert (one * 2).chunk(2)[0].computed == "mul"
    assert not one.changed


@RENAMING
def test_a_delta_without_coordinates_is_tried_as_the_modules_first(tmp_path: Path) -> None:
    model = built(vit)
    base = copy.deepcopy(model)
    delta = trained(model)
    own = said_in_module(base, delta)
    assert own.keys() <= dict(model.named_parameters()).keys()
    assert own.keys() != delta.keys()
    for one in (replace(own, coordinates=None), replace(delta, coordinates=None), own, delta):
        with one.apply(base):
            assert same_weights(base, model)
    replace(own, coordinates=None).save(tmp_path / "of_module.safetensors")
    assert SparseDelta.load(tmp_path / "of_module.safetensors").coordinates is None
    delta.save(tmp_path / "of_files.safetensors")
    assert SparseDelta.load(tmp_path / "of_files.safetensors").coordinates == "checkpoint"


def test_other_modules_are_left_alone() -> None:
    assert not coordinates_of(nn.Linear(2, 2)).files
