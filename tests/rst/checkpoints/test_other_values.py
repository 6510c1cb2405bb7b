"""Checkpoints that hold more than weights, in memory and in files."""

import argparse

import pytest
import torch
from safetensors.torch import load_file, save_file

from rst import CheckpointError, ParameterMismatchError, RSTWarning, export, merge, open_checkpoint
from rst.numerics.exactness import bit_equal
from tests.refusal import refused


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


PASSING = {
    "coo": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "per channel": lambda: torch.quantize_per_channel(
        torch.ones(3, 2), torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.int64), 0, torch.qint8
    ),
    "meta": lambda: torch.empty(1 << 40, device="meta"),
    "complex32": lambda: torch.ones(2, dtype=torch.complex32),
}


@pytest.mark.filterwarnings("ignore")  # torch's, of prototype layouts
@pytest.mark.parametrize("kind", PASSING)
def test_what_only_passes_through_a_pickle_may_be_of_any_layout(tmp_path, kind):
    passing = PASSING[kind]()
    for name, weight in {"base": torch.zeros(2), "tuned": torch.ones(2)}.items():
        torch.save({"w": weight, "b": passing}, tmp_path / f"{name}.pt")
    delta = export(tmp_path / "base.pt", tmp_path / "tuned.pt")
    assert list(delta) == ["w"]
    assert not delta.dense
    merge(tmp_path / "base.pt", delta, tmp_path / "merged.pt")
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    assert torch.equal(merged["w"], torch.ones(2))
    assert bit_equal(merged["b"], passing)
    for output in ("merged.safetensors", "folder"):
        with refused(CheckpointError, str(passing.dtype), parameter="b", file=output):
            merge(tmp_path / "base.pt", delta, tmp_path / output)
    assert not list(tmp_path.glob("folder*"))


HOSTILE = {
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(1, 1).long().expand(1, 1 << 16), torch.ones(1 << 16), (3,)),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(1), 0.1, 0, torch.qint8).expand(1 << 22),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_tensor_with_more_memory_than_its_file_is_refused(tmp_path, kind):
    torch.save({"w": torch.zeros(2), "b": HOSTILE[kind]()}, tmp_path / "a.pt")
    with refused(CheckpointError, parameter="b", file="a.pt"):
        open_checkpoint(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["coo", "csr", "meta"])
@pytest.mark.parametrize("route", ["memory", "file"])
def test_what_is_another_kind_of_tensor_on_the_other_side_is_refused(tmp_path, kind, route):
    odd = torch.empty(3, 3, device="meta") if kind == "meta" else PASSING[kind]()
    sides = {"odd": {"w": torch.zeros(2), "b": odd}, "plain": {"w": torch.ones(2), "b": torch.ones(3, 3)}}
    delta = export({"b": torch.zeros(3, 3)}, {"b": torch.ones(3, 3)})
    if route == "file":
        for name, state in sides.items():
            torch.save(state, tmp_path / f"{name}.pt")
        sides = {name: tmp_path / f"{name}.pt" for name in sides}
    with refused(ParameterMismatchError, parameter="b"):
        export(sides["odd"], sides["plain"])
    with refused(ParameterMismatchError, parameter="b"):
        export(sides["plain"], sides["odd"])
    with refused(ParameterMismatchError, parameter="b"):
        merge(sides["odd"], delta, *([tmp_path / "m.pt"] if route == "file" else []))
    assert not (tmp_path / "m.pt").exists()
