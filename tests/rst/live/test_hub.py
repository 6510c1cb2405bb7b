"""Adapters go to a hub and come back through the real huggingface_hub, whose server is one on this machine."""

import copy
import inspect
import sys
from pathlib import Path
from typing import get_type_hints

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from torch import Tensor, nn

from rst import CheckpointError, RSTModel, SparseDelta, export
from rst.live.hub import HubOptions, PushOptions, find_adapter
from tests.rst.conftest import set_hub_address
from tests.rst.live.hub_stand_in import Hub

FILES = ["README.md", "delta.safetensors", "rst_config.json"]


@pytest.fixture
def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))


def delta_of(base: nn.Module, seed: int = 1) -> SparseDelta:
    torch.manual_seed(seed)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.get_parameter("0.weight")[0] += torch.rand(6)
    return export(base, tuned)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(found: nn.Module, wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, wanted[name]) for name, tensor in found.state_dict().items())


@pytest.fixture
def model(base: nn.Module) -> RSTModel:
    model = RSTModel(copy.deepcopy(base))
    model.add_adapter("default", delta_of(base))
    return model


def test_pushed_and_loaded_again(hub: Hub, model: RSTModel, base: nn.Module) -> None:
    url = model.push_to_hub("me/ar2cl")
    repository = hub.repositories["me/ar2cl"]
    assert sorted(repository.branches["main"]) == [".gitattributes", *FILES]
    (commit,) = repository.commits
    assert (commit["files"], commit["branch"], commit["summary"]) == (FILES, "main", "Upload an RST adapter")
    assert url.startswith(f"{hub.url}/me/ar2cl/commit/")
    assert "library_name: rst" in repository.branches["main"]["README.md"].decode()
    again = RSTModel.from_pretrained(base, "me/ar2cl")
    assert same(again.base_model, weights(model.base_model))


def test_a_name_without_owner_is_the_users_and_a_named_adapter_is_pushed(
    hub: Hub, model: RSTModel, base: nn.Module
) -> None:
    model.add_adapter("other", other := delta_of(base, seed=2))
    model.push_to_hub("pr2cl", "other", private=True, token="hf_secret")
    repository = hub.repositories["me/pr2cl"]
    assert repository.private is True
    assert {token for _, _, token in hub.requests} == {"hf_secret"}
    with pytest.raises(CheckpointError, match="me/pr2cl"):
        RSTModel.from_pretrained(base, "me/pr2cl")
    hub.requests.clear()
    again = RSTModel.from_pretrained(base, "me/pr2cl", token="hf_reader")
    assert again.get_delta() == other
    assert {token for _, _, token in hub.requests} == {"hf_reader"}


def test_a_second_push_keeps_the_card_and_says_what_it_is_told(hub: Hub, model: RSTModel, base: nn.Module) -> None:
    model.push_to_hub("me/ar2cl")
    files = hub.repositories["me/ar2cl"].branches["main"]
    files["README.md"] = b"written by hand"
    model.add_adapter("better", delta_of(base, seed=2))
    model.push_to_hub("me/ar2cl", "better", commit_message="Better", commit_description="More steps", private=True)
    commit = hub.repositories["me/ar2cl"].commits[-1]
    assert commit["files"] == FILES[1:]
    assert (commit["summary"], commit["description"]) == ("Better", "More steps")
    assert files["README.md"] == b"written by hand"
    assert hub.repositories["me/ar2cl"].private is False
    assert RSTModel.from_pretrained(base, "me/ar2cl").get_delta() == model.get_delta("better")


def test_revisions_are_branches_made_when_needed(hub: Hub, model: RSTModel, base: nn.Module) -> None:
    model.push_to_hub("me/ar2cl")
    model.add_adapter("later", later := delta_of(base, seed=2))
    for _ in range(2):
        model.push_to_hub("me/ar2cl", "later", revision="v2")
    assert [commit["branch"] for commit in hub.repositories["me/ar2cl"].commits] == ["main", "v2", "v2"]
    assert RSTModel.from_pretrained(copy.deepcopy(base), "me/ar2cl", revision="v2").get_delta() == later
    assert RSTModel.from_pretrained(base, "me/ar2cl").get_delta() == model.get_delta("default")
    with pytest.raises(CheckpointError, match="me/ar2cl.*v3"):
        find_adapter("me/ar2cl", revision="v3")


def test_the_card_that_is_kept_is_the_branchs_own(hub: Hub, model: RSTModel) -> None:
    for _ in range(2):
        model.push_to_hub("me/ar2cl", revision="v2")
    assert [commit["files"] for commit in hub.repositories["me/ar2cl"].commits] == [FILES, FILES[1:]]


def test_a_pull_request_leaves_the_branch_alone(hub: Hub, model: RSTModel) -> None:
    model.push_to_hub("me/ar2cl", create_pr=True)
    repository = hub.repositories["me/ar2cl"]
    assert [commit["pull_request"] for commit in repository.commits] == [True]
    assert list(repository.branches["main"]) == [".gitattributes"]


def test_an_adapter_in_a_subfolder_of_a_repository(hub: Hub, model: RSTModel, base: nn.Module) -> None:
    model.push_to_hub("me/many")
    files = hub.repositories["me/many"].branches["main"]
    for name in FILES[1:]:
        files[f"art/{name}"] = files.pop(name)
    with pytest.raises(CheckpointError, match="me/many"):
        find_adapter("me/many")
    again = RSTModel.from_pretrained(base, "me/many", subfolder="art")
    assert again.get_delta() == model.get_delta()
    again.load_adapter("me/many", "again", subfolder="art")
    again.hotswap_adapter("me/many", "again", subfolder="art")
    assert again.adapter_names == ["default", "again"]


def test_what_was_downloaded_is_found_without_a_network(
    hub: Hub, model: RSTModel, base: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model.push_to_hub("me/ar2cl")
    folder = find_adapter("me/ar2cl")
    assert folder.parent.name == "snapshots"
    assert folder.is_relative_to(tmp_path / "cache" / "models--me--ar2cl")
    hub.requests.clear()
    assert find_adapter("me/ar2cl", local_files_only=True) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_adapter("me/ar2cl") == folder
    assert RSTModel.from_pretrained(base, "me/ar2cl").get_delta() == model.get_delta()
    with pytest.raises(CheckpointError, match="me/other"):
        find_adapter("me/other")
    assert hub.requests == []
    with pytest.raises(CheckpointError, match="me/ar2cl"):
        find_adapter("me/ar2cl", cache_dir=str(tmp_path / "empty"), local_files_only=True)


def test_an_unreachable_hub_gives_the_cache_or_an_error(
    hub: Hub, model: RSTModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.push_to_hub("me/ar2cl")
    folder = find_adapter("me/ar2cl")
    set_hub_address(monkeypatch, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    assert find_adapter("me/ar2cl") == folder
    with pytest.raises(CheckpointError, match="me/other"):
        find_adapter("me/other")


def test_what_is_missing_is_named(hub: Hub, model: RSTModel, base: nn.Module) -> None:
    with pytest.raises(CheckpointError, match="me/nothing: no such folder, and not an RST adapter on the hub"):
        RSTModel.from_pretrained(base, "me/nothing")
    model.push_to_hub("me/lora")
    del hub.repositories["me/lora"].branches["main"]["rst_config.json"]
    with pytest.raises(CheckpointError, match=r"me/lora.*rst_config\.json"):
        model.load_adapter("me/lora", "lora")
    with pytest.raises(CheckpointError, match="not/a/repository"):
        model.load_adapter("not/a/repository", "lora")
    assert model.adapter_names == ["default"]


def test_without_huggingface_hub_it_is_asked_for(model: RSTModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        CheckpointError, match=r'me/x: no such folder; .* pip install "residual-sparse-training\[peft\]"'
    ):
        model.load_adapter("me/x", "x")
    with pytest.raises(
        CheckpointError, match=r'me/x: to upload to the hub, pip install "residual-sparse-training\[peft\]"'
    ):
        model.push_to_hub("me/x")


def test_options_are_called_as_peft_calls_them() -> None:
    from peft import PeftModel

    theirs = inspect.signature(PeftModel.push_to_hub).parameters
    assert set(get_type_hints(PushOptions)) <= set(theirs)
    ours = {"trusted_keys"}
    assert set(get_type_hints(HubOptions)) - ours <= set(inspect.signature(huggingface_hub.hf_hub_download).parameters)
    loading = inspect.signature(PeftModel.load_adapter).parameters
    assert [name for name in inspect.signature(RSTModel.load_adapter).parameters if name != "hub"] == list(loading)[:4]
