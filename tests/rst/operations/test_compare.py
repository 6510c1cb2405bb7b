"""What `rst.compare` says of two deltas is what plain loops over dense weights say."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rst import (
    Overlap,
    ParameterMismatchError,
    SparseDelta,
    WrongBaseError,
    compare,
    convert,
    export,
)
from tests.refusal import refused
from tests.strategies import FLOAT_DTYPES, vectors

State = dict[str, Tensor]


@st.composite
def siblings(draw: st.DrawFn) -> tuple[State, State, State]:
    """Draw a base of up to three parameters and two states tuned from it: equal, close, flipped, or unrelated."""
    base: State = {}
    first: State = {}
    second: State = {}
    for name in draw(st.sampled_from([("a",), ("a", "b"), ("a", "b", "c")])):
        dtype, size = draw(st.sampled_from(FLOAT_DTYPES)), draw(st.integers(0, 12))
        base[name], one, other = (draw(vectors(dtype, size)) for _ in range(3))
        choices = [base[name], one, other, torch.nextafter(base[name], one), -base[name]]
        for state in (first, second):
            kinds = draw(st.lists(st.integers(0, len(choices) - 1), min_size=size, max_size=size))
            picked = [choices[kind][i] for i, kind in enumerate(kinds)]
            state[name] = torch.stack(picked) if picked else base[name]
    return base, first, second


def raw(tensor: Tensor) -> list[bytes]:
    return [bytes(number.reshape(1).view(torch.uint8).tolist()) for number in tensor]


def cosine_by_fractions(first: dict[object, float], second: dict[object, float]) -> float | None:
    """Exact sums of exact products, rounded once."""
    if not all(map(math.isfinite, [*first.values(), *second.values()])):
        return None
    squares = [sum((Fraction(number) ** 2 for number in side.values()), Fraction(0)) for side in (first, second)]
    if not all(squares):
        return None
    dot = sum((Fraction(first[key]) * Fraction(second[key]) for key in first.keys() & second.keys()), Fraction(0))
    return math.copysign(math.sqrt(dot * dot / (squares[0] * squares[1])), 1 if dot > 0 else -1)


def check(found: Overlap, base: State, first: State, second: State) -> None:
    """Compare with loops over every weight."""
    residuals: list[dict[object, float]] = []
    moved: list[dict[object, bytes]] = []
    for state in (first, second):
        changes = {
            (name, i): (bits, float(state[name][i]) - float(base[name][i]))
            for name in state
            for i, (bits, before) in enumerate(zip(raw(state[name]), raw(base[name]), strict=True))
            if bits != before
        }
        moved.append({key: bits for key, (bits, _) in changes.items()})
        residuals.append({key: residual for key, (_, residual) in changes.items()})
    shared = moved[0].keys() & moved[1].keys()
    assert (found.first, found.second, found.shared) == (len(moved[0]), len(moved[1]), len(shared))
    assert found.union == len(moved[0].keys() | moved[1].keys())
    assert found.jaccard == (len(shared) / found.union if found.union else None)
    assert found.same == sum(moved[0][key] == moved[1][key] for key in shared)
    signs = [{key: (number > 0) - (number < 0) for key, number in side.items()} for side in residuals]
    assert found.opposed == sum(signs[0][key] * signs[1][key] < 0 for key in shared)
    wanted = cosine_by_fractions(*residuals)
    assert found.cosine == (None if wanted is None else pytest.approx(wanted, abs=1e-9))


@given(siblings(), st.sampled_from(["add", "replace", "step"]), st.sampled_from(["add", "replace", "step"]))
def test_with_the_base_every_number_is_that_of_plain_loops(states, op_first, op_second) -> None:
    base, first, second = states
    found = compare(export(base, first, op=op_first), export(base, second, op=op_second), base=base)
    check(found.total, base, first, second)
    for name, overlap in found.parameters.items():
        check(overlap, *({name: state[name]} for state in states))
    assert set(found.parameters) == {
        name for name in base if any(raw(state[name]) != raw(base[name]) for state in (first, second))
    }


@given(siblings(), st.sampled_from(["add", "replace", "step"]))
def test_without_the_base_positions_and_same_values_are_known_for_any_op(states, op) -> None:
    base, first, second = states
    with_base = compare(export(base, first), export(base, second), base=base)
    without = compare(export(base, first, op=op), export(base, second, op=op))
    for name, wanted in {**with_base.parameters, "": with_base.total}.items():
        found = without.parameters[name] if name else without.total
        assert (found.first, found.second, found.shared) == (wanted.first, wanted.second, wanted.shared)
        assert (found.same, found.same_base) == (wanted.same, wanted.same_base)


def test_the_extremes_of_float64_have_an_angle() -> None:
    base = {name: torch.zeros(2, dtype=torch.float64) for name in "ab"}
    for size in (5e-324, 1.7e308):
        first = export(base, {"a": torch.tensor([size, size], dtype=torch.float64), "b": base["b"]})
        second = export(base, {"a": torch.tensor([0, size], dtype=torch.float64), "b": base["b"] + size})
        found = compare(first, second)
        assert found.parameters["a"].cosine == pytest.approx(math.sqrt(1 / 2))
        assert found.total.cosine == pytest.approx(1 / math.sqrt(2 * 3))


def test_residuals_are_compared_without_a_base() -> None:
    base = {"w": torch.zeros(5), "v": torch.zeros(2)}
    first = export(base, {"w": torch.tensor([1.0, 2, 0, -3, 0]), "v": torch.zeros(2)})
    second = export(base, {"w": torch.tensor([1.0, -2, 4, 0, 0]), "v": torch.ones(2)})
    found = compare(first, second)
    cosine = (1 - 4) / math.sqrt(14 * 21)
    assert found.parameters["w"] == Overlap(3, 3, 2, 1, 1, pytest.approx(cosine), True)
    assert found.parameters["v"] == Overlap(0, 2, 0, 0, 0, None, None)
    assert found.total == Overlap(3, 5, 2, 1, 1, pytest.approx(-3 / math.sqrt(14 * 23)), True)
    assert found.parameters["w"].jaccard == 0.5
    assert compare(second, first).total.cosine == found.total.cosine
    assert compare(first, first).total.cosine == pytest.approx(1)
    assert compare(first, first * -1.0).total.cosine == pytest.approx(-1)


def test_steps_tuned_values_and_mixed_operations_leave_angles_unknown_without_the_base() -> None:
    base = {"w": torch.zeros(3)}
    first, second = {"w": torch.tensor([1.0, 0, 2])}, {"w": torch.tensor([1.0, 0, -2])}
    for op in ("replace", "step"):
        found = compare(export(base, first, op=op), export(base, second, op=op)).total
        assert found == Overlap(2, 2, 2, 1, None, None, True)
    mixed = export(base, first), convert(export(base, second), op="step", base=base)
    assert compare(*mixed).total == Overlap(2, 2, 2, None, None, None, True)
    assert compare(*mixed, base=base).total == Overlap(2, 2, 2, 1, 1, pytest.approx(-0.6), True)


def test_integers_and_float8_have_residuals_where_the_base_is_read() -> None:
    base = {"n": torch.tensor([1, 2, 3]), "f": torch.tensor([1.0, 2]).to(torch.float8_e4m3fn)}
    first = {"n": torch.tensor([1, 4, 6]), "f": torch.tensor([2.0, 2]).to(torch.float8_e4m3fn)}
    second = {"n": torch.tensor([0, 4, 1]), "f": torch.tensor([2.0, 2]).to(torch.float8_e4m3fn)}
    deltas = export(base, first), export(base, second)
    assert compare(*deltas).total.cosine is None
    found = compare(*deltas, base=base)
    assert found.parameters["n"] == Overlap(2, 3, 2, 1, 1, pytest.approx((4 - 6) / math.sqrt(13 * 9)), True)
    assert found.parameters["f"] == Overlap(1, 1, 1, 1, 0, pytest.approx(1), True)


def test_tensors_stored_whole_are_compared_by_their_bits() -> None:
    base = {"w": torch.zeros(2)}
    ones, zeros = torch.ones(2), torch.zeros(2)
    one = export(base, {"w": ones, "head": ones + 1, "kept": -zeros, "sign": zeros.clone(), "mine": ones + 2})
    two = export(base, {"w": ones, "head": ones + 3, "kept": -zeros, "sign": -zeros, "yours": ones + 2})
    assert compare(one, two).whole == {
        "head": "different",
        "kept": "same",
        "sign": "different",
        "mine": "first only",
        "yours": "second only",
    }


def test_other_bases_are_told_and_are_no_error() -> None:
    tuned = {"v": torch.ones(3), "w": torch.ones(3)}
    base, other = {"v": torch.zeros(3), "w": torch.zeros(3)}, {"v": torch.zeros(3), "w": torch.full((3,), 0.5)}
    one, two = export(base, tuned), export(other, tuned)
    found = compare(one, two)
    assert [found.parameters[name].same_base for name in ("v", "w")] == [True, False]
    assert found.total.same_base is False
    assert compare(one, two * 1.0).total.same_base is None
    with refused(WrongBaseError, 3, file="state dict", parameter="w"):
        compare(one, two, base=base)


def test_deltas_that_do_not_fit_together_are_refused_by_name(tmp_path: Path) -> None:
    small, large = ({"w": torch.zeros(size)} for size in (3, 4))
    one = export(small, {"w": torch.ones(3)})
    with refused(ParameterMismatchError, "(3,)", "(4,)", parameter="w"):
        compare(one, export(large, {"w": torch.ones(4)}))
    shared, tuned = torch.zeros(3), torch.ones(3)
    tied = export({"w": shared, "out": shared}, {"w": tuned, "out": tuned})
    untied = export({"w": shared, "out": shared}, {"w": tuned, "out": tuned + 1})
    for pair in ((tied, untied), (untied, tied)):
        with refused(ParameterMismatchError, "w", parameter="out"):
            compare(*pair)
    with refused(ParameterMismatchError, file="state dict", parameter="w"):
        compare(one, one, base={"v": torch.zeros(3)})


def test_files_and_empty_deltas(tmp_path: Path) -> None:
    base = {"w": torch.zeros(3)}
    export(base, {"w": torch.ones(3)}).save(tmp_path / "one.safetensors", "packed")
    export(base, base).save(tmp_path / "none.safetensors")
    found = compare(tmp_path / "one.safetensors", tmp_path / "none.safetensors")
    assert found.total == Overlap(3, 0, 0, 0, 0, None, None)
    assert found.total.jaccard == 0
    nothing = SparseDelta({})
    assert compare(nothing, nothing).total == Overlap(0, 0, 0, 0, 0, None, None)
    assert compare(nothing, nothing).total.jaccard is None


def test_a_parameter_that_one_of_both_leaves_as_it_is() -> None:
    base, tuned = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    first, nothing = export(base, tuned), export(base, tuned) + -1.0 * export(base, tuned)
    assert nothing["w"].nnz == 0
    for found in (compare(first, nothing).parameters["w"], compare(nothing, first).parameters["w"]):
        assert (found.shared, found.same, found.cosine, found.union) == (0, 0, None, 3)
