"""`rst merge --in-place`: there and back, without writing, and what the options need."""

import torch
from safetensors.torch import load_file, save_file

from rst import export
from tests.rst.cli.conftest import same_bytes


def files(folder):
    base = {"w": torch.randn(8, 8), "b": torch.zeros(8)}
    tuned = {"w": base["w"].clone(), "b": base["b"] + 1}
    tuned["w"][2, 3] = 7
    save_file(base, folder / "base.safetensors")
    export(base, tuned).save(folder / "delta.safetensors")
    return base, tuned


def state(folder):
    return {name: tensor.clone() for name, tensor in load_file(folder / "base.safetensors").items()}


def test_there_and_back(rst, tmp_path):
    base, tuned = files(tmp_path)
    rehearsed = rst(
        "merge", "base.safetensors", "delta.safetensors", "--in-place", "--undo", "u.safetensors", "--dry-run"
    )
    assert (rehearsed.code, rehearsed.err) == (0, "")
    assert "would change base.safetensors" in rehearsed.out
    assert same_bytes(state(tmp_path), base)
    assert not (tmp_path / "u.safetensors").exists()
    done = rst("merge", "base.safetensors", "delta.safetensors", "--in-place", "--undo", "u.safetensors", "--json").json
    assert (done["output"], done["undo"], done["changed"]) == ("base.safetensors", "u.safetensors", 9)
    assert same_bytes(state(tmp_path), tuned)
    back = rst("merge", "base.safetensors", "u.safetensors", "--in-place", "--undo", "r.safetensors")
    assert "changed base.safetensors; r.safetensors leads back" in back.out
    assert same_bytes(state(tmp_path), base)


def test_the_options_go_together(rst, tmp_path):
    base, _ = files(tmp_path)
    for words in (
        ["--in-place"],
        ["--undo", "u.safetensors"],
        ["--in-place", "--undo", "u.safetensors", "-o", "m.safetensors"],
        ["--in-place", "--undo", "u.pt"],
        ["--in-place", "--undo", "base.safetensors"],
        ["--in-place", "--undo", "delta.safetensors"],
    ):
        assert rst("merge", "base.safetensors", "delta.safetensors", *words).code == 2, words
    assert same_bytes(state(tmp_path), base)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base.safetensors", "delta.safetensors"]
