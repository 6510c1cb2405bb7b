"""`owner/name` in place of a path, in every command that reads weights or a delta."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from rst import export
from rst.live.adapter_folder import write_adapter
from tests.rst.cli.conftest import State, files, is_one_sentence, read, same_bytes, save_sharded, tune, weights
from tests.rst.live.hub_stand_in import Hub, Repository


@pytest.fixture
def pair() -> tuple[State, State]:
    base = weights(torch.float32)
    return base, tune(base)


@pytest.fixture
def filled(hub: Hub, tmp_path: Path, pair: tuple[State, State]) -> Hub:
    """A hub with a base in shards, its fine-tuned weights as a pickle, and the adapter between them."""
    base, tuned = pair
    places = {name: tmp_path / "upload" / name for name in ("base-3.2-1B", "tuned", "adapter")}
    for place in places.values():
        place.mkdir(parents=True)
    save_sharded(base, places["base-3.2-1B"])
    (places["base-3.2-1B"] / "config.json").write_text("{}")
    torch.save(tuned, places["tuned"] / "pytorch_model.bin")
    write_adapter(places["adapter"], export(base, tuned))
    for name, place in places.items():
        hub.repositories[f"me/{name}"] = Repository(False, {"main": files(place), "old": {".gitattributes": b""}})
    return hub


def test_merge_takes_base_and_adapter_from_the_hub_and_writes_here(rst, tmp_path, filled, pair):
    ran = rst("merge", "me/base-3.2-1B", "me/adapter")
    assert ran.code == 0, ran.err
    assert "wrote base-3.2-1B.merged" in ran.out
    merged = tmp_path / "base-3.2-1B.merged"
    assert same_bytes(read(merged / "model.safetensors"), pair[1])
    assert (merged / "config.json").read_text() == "{}"
    assert not (merged / "config.json").is_symlink()


def test_what_was_downloaded_is_found_again_without_the_hub(rst, tmp_path, filled, monkeypatch):
    assert rst("merge", "me/base-3.2-1B", "me/adapter", "-o", "first.safetensors").code == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    filled.requests.clear()
    assert rst("merge", "me/base-3.2-1B", "me/adapter", "-o", "second.safetensors").code == 0
    assert not filled.requests
    assert same_bytes(read(tmp_path / "first.safetensors"), read(tmp_path / "second.safetensors"))


def test_export_names_the_ids_again_in_what_to_type_next(rst, tmp_path, filled):
    ran = rst("export", "--base", "me/base-3.2-1B", "me/tuned")
    assert ran.code == 0, ran.err
    assert "merge it with: rst merge me/base-3.2-1B tuned.delta.safetensors" in ran.out
    assert (tmp_path / "tuned.delta.safetensors").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "me/adapter", "--base", "me/base-3.2-1B"),
        ("inspect", "me/adapter"),
        ("inspect", "me/adapter", "--html", "page.html", "--base", "me/base-3.2-1B"),
        ("diff", "me/adapter", "me/adapter", "--base", "me/base-3.2-1B"),
        ("combine", "me/adapter", "me/adapter", "-w", "0.5", "0.5", "--base", "me/base-3.2-1B", "-o", "c.safetensors"),
        ("convert", "me/adapter", "r.safetensors", "--op", "replace", "--base", "me/base-3.2-1B"),
        ("tau", "me/base-3.2-1B", "me/tuned"),
        ("sync", "publish", "chain", "me/base-3.2-1B"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_every_command_takes_them(rst, filled, words):
    ran = rst(*words)
    assert ran.code == 0, ran.err


def test_a_revision_follows_an_at_sign(rst, filled):
    filled.repositories["me/adapter"].branches["v1"] = filled.repositories["me/adapter"].branches.pop("main")
    filled.repositories["me/adapter"].branches["main"] = {}
    assert is_one_sentence(rst("verify", "me/adapter"))
    assert rst("verify", "me/adapter@v1").code == 0


def test_what_is_here_comes_before_the_hub(rst, tmp_path, filled, pair):
    (tmp_path / "me").mkdir()
    ran = rst("verify", "me/adapter")
    assert is_one_sentence(ran)
    assert "me/adapter" in ran.err
    assert not filled.requests


@pytest.mark.parametrize("word", ["me/nothing", "me/adapter@nowhere"])
def test_neither_here_nor_on_the_hub(rst, tmp_path, filled, word):
    here = files(tmp_path)
    ran = rst("merge", word, "me/adapter")
    assert ran.code == 2
    assert word.partition("@")[0] in ran.err
    assert "hub" in ran.err
    kept = {name: content for name, content in files(tmp_path).items() if not name.startswith("cache")}
    assert kept == here


def test_a_mistyped_file_is_not_looked_for_on_the_hub(rst, filled):
    assert is_one_sentence(rst("merge", "runs/base.pt", "me/delta.safetensors"))
    assert not filled.requests
