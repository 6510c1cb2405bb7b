"""Checkpoints that hold more than weights, in memory and in files."""

import argparse

import pytest
import torch
from safetensors.torch import load_file, save_file

from rst import CheckpointError, RSTWarning, export, merge, open_checkpoint


def test_a_mapping_is_read_as_a_file_of_it_is(tmp_path):
    base = {"w": torch.zeros(2)}
    nested = {"model": {"w": torch.ones(2), "_extra_state": None}, "epoch": 1}
    torch.save(nested, tmp_path / "tuned.pt")
    assert export(base, nested) == export(base, tmp_path / "tuned.pt")
    again = merge({"model": dict(base), "epoch": 3}, export(base, nested))
    assert again["epoch"] == 3
    assert torch.equal(again["model"]["w"], torch.ones(2))


def test_a_refused_pickle_names_the_class_and_the_way_out(tmp_path):
    torch.save({"model": {"w": torch.zeros(2)}, "args": argparse.Namespace(lr=1)}, tmp_path / "args.pt")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "args.pt")
    assert "argparse.Namespace" in caught.value.reason
    assert "add_safe_globals" in caught.value.reason
    assert caught.value.reason.isprintable()
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert list(open_checkpoint(tmp_path / "args.pt")) == ["w"]


@pytest.mark.parametrize("dtype", ["complex64", "float8_e8m0fnu", "float8_e4m3fnuz", "float4_e2m1fn_x2"])
def test_what_is_only_copied_may_have_any_dtype_of_the_format(tmp_path, dtype):
    kind = getattr(torch, dtype)
    scales = torch.ones(4, 8, dtype=torch.uint8).view(kind)
    for name, weight in {"base": torch.zeros(2), "tuned": torch.ones(2)}.items():
        save_file({"w": weight, "s": scales}, tmp_path / f"{name}.safetensors")
    delta = export(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    merge(tmp_path / "base.safetensors", delta, tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    assert list(delta) == ["w"]
    assert merged["s"].shape == scales.shape
    assert torch.equal(merged["s"].view(torch.uint8), scales.view(torch.uint8))


def test_a_cast_for_a_base_in_another_dtype_leaves_the_positions():
    base, tuned = {"w": torch.tensor([1.0, 2.0, 3.0])}, {"w": torch.tensor([1.0, 2.5, 3.0])}
    delta = export(base, tuned)
    with pytest.raises(TypeError):
        delta.to(torch.bfloat16)
    with pytest.warns(RSTWarning):
        cast = delta.to(dtype=torch.bfloat16)
    assert cast["w"].indices.dtype == delta["w"].indices.dtype
    merged = merge({"w": base["w"].bfloat16()}, cast)
    assert torch.equal(merged["w"], tuned["w"].bfloat16())
