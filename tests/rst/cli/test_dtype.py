"""A base and tuned weights of two dtypes: cast when asked to, which is said, and refused with the way out if not."""

import pytest
import torch
from safetensors.torch import load_file, save_file

BASE = {"w": torch.tensor([1.0, 2.0, 3.0, 0.1]), "steps": torch.tensor(3)}
TUNED = {"w": torch.tensor([1.5, 2.0, 3.0, 0.30001]), "steps": torch.tensor(3)}


def half(state):
    return {name: one.bfloat16() if one.is_floating_point() else one for name, one in state.items()}


@pytest.fixture(autouse=True)
def inputs(tmp_path):
    save_file(half(BASE), tmp_path / "half.safetensors")
    save_file(BASE, tmp_path / "base.safetensors")
    save_file(TUNED, tmp_path / "tuned.safetensors")


def test_a_float32_delta_on_a_bfloat16_base(rst, tmp_path):
    assert rst("export", "tuned.safetensors", "--base", "base.safetensors", "-o", "d.safetensors").code == 0
    refused = rst("merge", "half.safetensors", "d.safetensors", "-o", "m.safetensors", "--json").json["error"]
    assert refused["type"] == "ParameterMismatchError"
    assert "--dtype" in refused["message"]
    merged = rst("merge", "half.safetensors", "d.safetensors", "-o", "m.safetensors", "--dtype", "bfloat16")
    assert merged.code == 0
    assert "torch.bfloat16" in merged.err
    assert "site-packages" not in merged.err
    assert ".py" not in merged.err
    found = load_file(tmp_path / "m.safetensors")
    assert found["w"].dtype == torch.bfloat16
    assert torch.allclose(found["w"].float(), TUNED["w"], rtol=1e-2)


def test_float32_weights_tuned_from_a_bfloat16_base(rst, tmp_path):
    words = ("export", "tuned.safetensors", "--base", "half.safetensors", "-o", "d.safetensors")
    refused = rst(*words, "--json").json["error"]
    assert refused["type"] == "ParameterMismatchError"
    assert "--dtype bfloat16" in refused["message"]
    exported = rst(*words, "--dtype", "bfloat16")
    assert exported.code == 0
    assert "cast 1 tensors of tuned.safetensors to torch.bfloat16" in exported.err
    assert rst("merge", "half.safetensors", "d.safetensors", "-o", "m.safetensors").code == 0
    found = load_file(tmp_path / "m.safetensors")
    assert torch.equal(found["w"], TUNED["w"].bfloat16())
    assert torch.equal(found["steps"], TUNED["steps"])


def test_a_base_of_two_dtypes_is_not_told_the_cast_that_was_made(rst, tmp_path):
    save_file({**half(BASE), "norm": torch.ones(2)}, tmp_path / "mixed.safetensors")
    save_file({**TUNED, "norm": torch.full((2,), 3.0)}, tmp_path / "tuned.safetensors")
    words = ("export", "tuned.safetensors", "--base", "mixed.safetensors", "-o", "d.safetensors", "--dtype", "bfloat16")
    refused = rst(*words)
    assert "norm" in refused.err
    assert "--dtype float32" not in refused.err
    assert "--modules-to-save" in refused.err
    assert rst(*words, "--modules-to-save", "norm").code == 0


def test_a_cast_needs_a_base(rst):
    assert rst("export", "tuned.safetensors", "--dtype", "bfloat16", "--json").json["error"]["type"] == "ConfigError"
