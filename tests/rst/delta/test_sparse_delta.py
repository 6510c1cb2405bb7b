"""A delta as a value: sizes, arithmetic, equality, the N-D sparse tensor and the printed table."""

from dataclasses import replace
from pathlib import Path

import torch

from rst import DeltaFormatError, ParameterMismatchError, SparseDelta, export
from tests.refusal import refused


def two() -> tuple[dict[str, torch.Tensor], SparseDelta, SparseDelta]:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    first = {"a": torch.tensor([[1.0, 0, 0], [0, 2, 0]]), "b": torch.ones(4)}
    second = {"a": torch.tensor([[-1.0, 0, 0], [0, 3, 4]]), "b": torch.tensor([1.0, 1, 1, 5])}
    return base, export(base, first), export(base, second)


def test_counts() -> None:
    _, first, second = two()
    assert (first.nnz, second.nnz) == (2, 4)
    assert (list(first), list(second)) == (["a"], ["a", "b"])
    assert first.density == 2 / 10
    assert first["a"].density == 2 / 6
    assert (first.nbytes, first.dsp()) == (2 * 8, 2)


def test_arithmetic_of_residuals() -> None:
    _, first, second = two()
    total = first + second
    assert total["a"].to_coo().to_dense().tolist() == [[0, 0, 0], [0, 5, 4]]
    assert total["a"].nnz == 2  # what cancels is gone
    assert total["b"].to_coo().to_dense().tolist() == [0, 0, 0, 4]
    assert (0.5 * first)["a"].values.tolist() == [0.5, 1.0]
    assert first * 2 == 2 * first
    assert total.fingerprint() is None


def test_equality_is_of_bits() -> None:
    base, first, second = two()
    assert first == two()[1]
    assert first != second
    assert first != first * 1.0  # the base is no longer known
    zero, minus = torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 2.0])
    assert export({"w": zero}, {"w": minus}) != export({"w": zero}, {"w": minus.abs()})
    assert base["a"].any() == torch.tensor(False)


def test_what_is_stored_whole_has_no_arithmetic() -> None:
    base = {"body": torch.zeros(3)}
    delta = export(base, {"body": torch.ones(3), "head.weight": torch.ones(2)})
    with refused(ParameterMismatchError, 1, "head.weight"):
        _ = delta * 2
    with refused(ParameterMismatchError, "sparse_only"):
        _ = delta + delta
    assert (delta.sparse_only() * 2)["body"].values.tolist() == [2.0] * 3
    assert delta.dsp() == 5


def test_the_sparse_tensor_is_that_of_torch() -> None:
    base, _, second = two()
    del base["b"]
    wanted = torch.tensor([[-1.0, 0, 0], [0, 3, 4]]).to_sparse()
    found = second["a"].to_coo()
    assert torch.equal(found.indices(), wanted.indices())
    assert torch.equal(found.values(), wanted.values())
    scalar = export({"s": torch.tensor(1.0)}, {"s": torch.tensor(3.0)})["s"].to_coo()
    assert scalar.to_dense().item() == 2.0


def test_the_summary_is_a_table() -> None:
    lines = two()[2].summary().splitlines()
    assert lines[0].split() == ["tensor", "changed", "of", "density", "bytes"]
    assert lines[1].split() == ["a", "3", "6", "50.0000%", "24"]
    assert lines[3].split() == ["total", "4", "10", "40.0000%", "32"]
    assert lines[-1] == "downstream parameters (DSP): 4"


def test_the_summary_says_what_the_downstream_parameters_consist_of() -> None:
    base = {"a": torch.zeros(2, 3), "head.w": torch.zeros(7)}
    delta = export(base, {"a": torch.eye(2, 3), "head.w": torch.zeros(7)}, modules_to_save=["head"])
    assert delta.summary().splitlines()[-1].split(": ", 1)[1] == "9: 2 changed weights and 7 in modules stored whole"


def test_another_device_has_all_of_it() -> None:
    base, tuned = {"a": torch.zeros(2, 3), "head.w": torch.zeros(2)}, {"a": torch.ones(2, 3), "head.w": torch.ones(2)}
    delta = export(base, tuned, modules_to_save=["head"])
    assert delta.to("cpu") == delta
    moved = delta.to("meta")
    assert moved.dense["head.w"].is_meta
    assert moved["a"].indices.is_meta
    assert moved["a"].values.is_meta
    assert "head.w" in delta.summary()
    assert repr(delta) == f"SparseDelta(6 weights in 1 parameters, 1 tensors whole, {delta.nbytes} bytes)"
    assert repr(two()[1]) == "SparseDelta(2 weights in 1 parameters, 16 bytes)"


def test_nothing_else_equals_a_delta() -> None:
    _, first, _ = two()
    assert first != dict(first)
    assert first["a"] != first["a"].values.tolist()


def test_a_dtype_that_safetensors_lacks_is_named(tmp_path: Path) -> None:
    change = two()[1]["a"]
    values = change.values.to(torch.complex64)
    odd = replace(change, values=values, exact_values=values[:0], dtype=torch.complex64, op="replace", base=None)
    with refused(DeltaFormatError, "torch.complex64", parameter="a"):
        SparseDelta({"a": odd}).save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
