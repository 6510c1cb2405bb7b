"""Derived names, and what is never overwritten."""

import os
from pathlib import Path

import pytest

from rst.cli.output_paths import OutputError, check_output, delta_beside, merged_beside
from tests.refusal import refused
from tests.rst.cli.conftest import files, is_one_sentence, save_sharded


@pytest.mark.parametrize(
    ("given", "delta", "merged"),
    [
        ("model.ckpt", "model.delta.safetensors", "model.merged.ckpt"),
        ("a/b.c.pt", "a/b.c.delta.safetensors", "a/b.c.merged.pt"),
        ("m.safetensors", "m.delta.safetensors", "m.merged.safetensors"),
        ("m.safetensors.index.json", "m.delta.safetensors", "m.merged.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.delta.safetensors", "pytorch_model.merged.safetensors"),
        ("folder.v2", "folder.v2.delta.safetensors", "folder.v2.merged"),
    ],
)
def test_names_are_derived_beside_the_input(tmp_path, monkeypatch, given, delta, merged):
    monkeypatch.chdir(tmp_path)
    Path("folder.v2").mkdir()
    assert delta_beside(Path(given)) == Path(delta)
    assert merged_beside(Path(given)) == Path(merged)


def test_the_current_folder_gets_its_own_name(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert delta_beside(Path()) == tmp_path / "model.delta.safetensors"


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("source", ["base.pt", "tuned.delta.safetensors"])
def test_merge_never_overwrites_an_input(rst, tmp_path, delta, link, force, source):
    output = tmp_path / source
    if link:
        output = tmp_path / "other.pt"
        getattr(output, link)(tmp_path / source)
    before = files(tmp_path)
    ran = rst("merge", "base.pt", delta.name, "-o", output, *force)
    assert is_one_sentence(ran)
    assert f"the input {source}" in ran.err
    assert files(tmp_path) == before


def test_a_shard_of_the_base_is_an_input(rst, tmp_path, delta, pair):
    index = save_sharded(pair[0], tmp_path)
    before = files(tmp_path)
    for output in ("model-2-of-2.safetensors", index.name):
        ran = rst("merge", tmp_path, delta.name, "-o", output, "--force")
        assert is_one_sentence(ran)
        assert "the input" in ran.err
    assert files(tmp_path) == before


def test_export_never_overwrites_an_input(rst, tmp_path, pair):
    (tmp_path / "link.safetensors").symlink_to("base.pt")
    before = files(tmp_path)
    ran = rst("export", "tuned.pt", "--base", "base.pt", "-o", "link.safetensors", "--force")
    assert is_one_sentence(ran)
    assert "the input base.pt" in ran.err
    assert files(tmp_path) == before


def test_another_existing_file_is_overwritten_by_force_only(rst, tmp_path, delta):
    before = files(tmp_path)
    for words in (("export", "tuned.pt", "--base", "base.pt"), ("merge", "base.pt", delta.name, "-o", "old.pt")):
        (tmp_path / "old.pt").write_text("precious")
        ran = rst(*words)
        assert is_one_sentence(ran)
        assert "--force" in ran.err
        assert rst(*words, "--force").code == 0
    after = files(tmp_path)
    assert after.keys() == before.keys() | {"old.pt"}
    assert (after["base.pt"], after["tuned.pt"]) == (before["base.pt"], before["tuned.pt"])
    assert (tmp_path / "old.pt").read_bytes() != b"precious"


def test_a_dangling_link_is_something_that_exists(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    with refused(OutputError, "--force", file="link"):
        check_output(tmp_path / "link", [], force=False)


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("gone/d.safetensors", "there is no folder gone"),
        ("base.pt/d.safetensors", "there is no folder base.pt"),
        ("folder.safetensors", "is a folder"),
        ("d.pt", "a delta must be a .safetensors file"),
    ],
)
def test_places_that_cannot_be_written(rst, tmp_path, pair, output, complaint):
    (tmp_path / "folder.safetensors").mkdir()
    before = files(tmp_path)
    ran = rst("export", "tuned.pt", "--base", "base.pt", "-o", output, "--force")
    assert is_one_sentence(ran)
    assert complaint in ran.err
    assert files(tmp_path) == before


def test_a_folder_that_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))  # root may write anywhere
    with refused(OutputError, tmp_path, file="d.safetensors"):
        check_output(tmp_path / "d.safetensors", [], force=False)


def test_a_kind_of_output_that_merge_cannot_write(rst, tmp_path, delta):
    before = files(tmp_path)
    ran = rst("merge", "base.pt", delta.name, "-o", "out.txt")
    assert is_one_sentence(ran)
    assert "out.txt: unknown suffix; choose .safetensors" in ran.err
    assert files(tmp_path) == before
