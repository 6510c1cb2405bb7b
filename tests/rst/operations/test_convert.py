"""Residuals, tuned values and steps say the same thing, whichever way one goes from one to another."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rst import (
    ConfigError,
    DeltaFormatError,
    ParameterDelta,
    ParameterMismatchError,
    SparseDelta,
    WrongBaseError,
    convert,
    export,
    merge,
)
from rst.numerics.exactness import bit_equal, from_ordered_keys, ordered_keys
from tests.refusal import refused
from tests.strategies import pairs

OPS = ["add", "replace", "step"]
Pair = tuple[torch.Tensor, torch.Tensor]


@given(pairs(), st.lists(st.sampled_from(OPS), min_size=1, max_size=4))
def test_a_chain_of_conversions_merges_alike_and_leads_back(pair: Pair, ops: list[str]) -> None:
    base, tuned = {"w": pair[0]}, {"w": pair[1]}
    first = export(base, tuned, op=ops[0])
    delta = first
    for op in ops[1:]:
        delta = convert(delta, op=op, base=base)
        assert delta == export(base, tuned, op=op)
        assert bit_equal(merge(base, delta)["w"], pair[1])
    assert convert(delta, op=ops[0], base=base) == first


@given(pairs(), pairs())
def test_steps_of_a_chain_add_up_exactly_and_go_back(first: Pair, second: Pair) -> None:
    start, middle = first
    end = second[0][: start.numel()].to(start.dtype)
    end = torch.cat([torch.where(end.isnan(), 1.0, end), middle[end.numel() :]])
    to_middle = export({"w": start}, {"w": middle}, op="step")
    to_end = export({"w": middle}, {"w": end}, op="step")
    total = to_middle + to_end
    assert bit_equal(merge({"w": start}, total)["w"], end)
    assert total.nnz == export({"w": start}, {"w": end}).nnz
    for change in to_end.values():
        places = change.indices.long()
        back = from_ordered_keys(ordered_keys(end[places]) - change.values, end.dtype)
        assert bit_equal(back, middle[places])


def test_a_chain_over_different_parameters_still_knows_its_bases() -> None:
    start = {"a": torch.ones(3), "b": torch.ones(3)}
    middle = {"a": torch.tensor([1.0, 2, 1]), "b": torch.ones(3)}
    end = {"a": torch.tensor([1.0, 2, 1]), "b": torch.tensor([3.0, 1, 1])}
    total = export(start, middle, op="step") + export(middle, end, op="step")
    assert total == export(start, end, op="step")
    with refused(WrongBaseError, parameter="b"):
        merge({"a": start["a"], "b": torch.zeros(3)}, total)


def test_quantised_dtypes_have_replace_for_add_and_steps() -> None:
    base = {
        "i8": torch.tensor([-128, 5, 7], dtype=torch.int8),
        "u16": torch.tensor([0, 1, 65535], dtype=torch.int32).to(torch.uint16),
        "f8": torch.tensor([0.5, -1.0, 2.0]).to(torch.float8_e4m3fn),
        "f8_range": torch.tensor([0.5, -1.0, 2.0]).to(torch.float8_e5m2),
        "flag": torch.tensor([True, False, True]),
        "w": torch.tensor([1.0, 2.0, 3.0]),
    }
    tuned = {
        "i8": torch.tensor([127, 5, -7], dtype=torch.int8),
        "u16": torch.tensor([65535, 1, 0], dtype=torch.int32).to(torch.uint16),
        "f8": torch.tensor([-0.5, -0.0, 448.0]).to(torch.float8_e4m3fn),
        "f8_range": torch.tensor([-0.5, -0.0, 3.0]).to(torch.float8_e5m2),
        "flag": torch.tensor([False, False, False]),
        "w": torch.tensor([1.0, 2.5, 3.0]),
    }
    delta = export(base, tuned)
    assert delta.op == "add"
    assert {name: change.op for name, change in delta.items()} == {**dict.fromkeys(base, "replace"), "w": "add"}
    for op in OPS:
        converted = convert(delta, op=op, base=base)
        assert converted.op == op
        merged = merge(base, converted)
        assert all(bit_equal(merged[name], tuned[name]) for name in base)
        assert convert(converted, op="add", base=base) == delta


def test_replacing_again_changes_nothing_and_needs_no_right_base() -> None:
    base, tuned = {"w": torch.zeros(4)}, {"w": torch.tensor([1.0, 0, 2, 0])}
    delta = export(base, tuned, op="replace")
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.full((4,), 7.0))
    anywhere = replace(delta, parameters={"w": replace(delta["w"], base=None)})
    for _ in range(2):
        anywhere.apply(model)
        assert model.w.tolist() == [1, 7, 2, 7]


def test_files_are_read_lazily_and_tied_names_found(tmp_path: Path) -> None:
    base = {"embed": torch.randn(6, 5), "head.bias": torch.randn(5), "unread": torch.randn(3)}
    base["out"] = base["embed"]
    tuned = {**base, "embed": base["embed"] + 1}
    tuned["out"] = tuned["embed"]
    delta = export(base, tuned)
    delta.save(tmp_path / "delta.safetensors")
    save_file({"out": base["out"].clone()}, tmp_path / "base.safetensors")  # the alias alone
    steps = convert(tmp_path / "delta.safetensors", op="step", base=tmp_path / "base.safetensors")
    assert steps == export(base, tuned, op="step")


def test_what_stays_as_it_is_needs_no_base() -> None:
    base, tuned = {"w": torch.zeros(4)}, {"w": torch.ones(4), "head": torch.ones(2)}
    delta = export(base, tuned)
    assert convert(delta, op="add") == delta
    whole = replace(delta, parameters={})
    assert convert(whole, op="step") == whole
    assert whole.op == "add"


def test_refusals_name_the_parameter() -> None:
    base, tuned = {"w": torch.zeros(4)}, {"w": torch.ones(4)}
    delta = export(base, tuned)
    with refused(ConfigError, "add", "step", parameter="w"):
        convert(delta, op="step")
    with refused(ConfigError, "xor"):
        convert(delta, op="xor", base=base)
    with refused(ParameterMismatchError, file="state dict", parameter="w"):
        convert(delta, op="step", base={"v": torch.zeros(4)})
    with refused(ParameterMismatchError, "(2, 2)", "(4,)", parameter="w"):
        convert(delta, op="step", base={"w": torch.zeros(2, 2)})
    with refused(WrongBaseError, 4, file="state dict", parameter="w"):
        convert(delta, op="step", base={"w": torch.full((4,), 0.5)})
    broken = replace(delta, parameters={"w": replace(delta["w"], values=torch.ones(3))})
    with refused(DeltaFormatError, 3, 4, parameter="w"):
        convert(broken, op="step", base=base)


@pytest.mark.parametrize("op", ["replace", "step"])
def test_only_residuals_scale_and_only_like_adds_to_like(op: str) -> None:
    base, tuned = {"w": torch.zeros(4)}, {"w": torch.ones(4)}
    delta, residuals = export(base, tuned, op=op), export(base, tuned)
    with refused(ParameterMismatchError, op):
        delta * 0.5
    with refused(ParameterMismatchError, op, "add"):
        residuals + delta
    with refused(ParameterMismatchError, op):
        delta["w"].to_coo()


def test_mixed_operations_are_refused() -> None:
    base, tuned = {"w": torch.zeros(4)}, {"w": torch.ones(4)}
    parts: dict[str, ParameterDelta] = {op: export(base, tuned, op=op)["w"] for op in OPS}
    for chosen in (["add", "step"], ["add", "replace"], ["replace", "step"], OPS):
        mixed = SparseDelta({op: parts[op] for op in chosen})
        with refused(ParameterMismatchError, *{op for op in chosen if op != "replace"}):
            mixed.save("never.safetensors")


def test_the_trainer_exports_any_operation() -> None:
    from rst import ResidualSparseTrainer, RSTConfig

    torch.manual_seed(0)
    model = torch.nn.Linear(5, 4)
    base = {name: weights.clone() for name, weights in model.state_dict().items()}
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.attach(optimizer)
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    for op in OPS:
        delta = trainer.export(op=op)
        assert delta.op == op
        merged = merge(base, delta)
        assert all(bit_equal(merged[name], weights) for name, weights in model.state_dict().items())
