"""Changed positions and their number, found by kernels: those that a comparison finds, in a launch or two."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rst.delta.parameter_delta import ParameterDelta
from rst.numerics.difference import changed_positions, changed_positions_of_each, count_changed
from tests.compiled import compile_kernel
from tests.interpreted import interpreted_kernels

pytest.importorskip("triton", reason="Triton is not installed")
RAW = (torch.uint8, torch.int16, torch.float32, torch.float64)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tensors of bytes, words or floats at any alignment, of which few or many elements differ."""
    dtype, size, before = draw(st.sampled_from(RAW)), draw(st.integers(0, 90)), draw(st.sampled_from([0, 1]))
    base = torch.zeros(size + before, dtype=dtype)[before:]
    tuned = base.clone()
    for position in draw(st.lists(st.integers(0, size - 1), max_size=20)) if size else []:
        tuned[position] = 1
    if size and dtype.is_floating_point and draw(st.booleans()):
        tuned[0], base[-1] = -0.0, float("nan")
    return base, tuned


def places(base: Tensor, tuned: Tensor) -> list[int]:
    if not len(base):
        return []
    differs = base.view(torch.uint8).view(len(base), -1) != tuned.view(torch.uint8).view(len(base), -1)
    return differs.any(1).nonzero().squeeze(1).tolist()


@settings(max_examples=15)
@given(st.lists(pairs(), max_size=4))
def test_the_places_are_those_whose_bits_differ(drawn: list[tuple[Tensor, Tensor]]) -> None:
    wanted = [places(*pair) for pair in drawn]
    with interpreted_kernels() as launches:
        from rst.numerics.difference_triton import changed_positions_of_all

        assert [found.tolist() for found in changed_positions_of_all(drawn)] == wanted
        many = launches.copy()
        assert count_changed(drawn) == [len(found) for found in wanted]
    widths = {base.element_size() for base, _ in drawn if len(base)}
    assert len(many) <= 2 * len(widths)
    assert launches[len(many) :] == ["count"] * len(widths)


def test_one_launch_counts_thousands_of_tensors() -> None:
    many = [(torch.zeros(number % 2), torch.ones(number % 2)) for number in range(1000)]
    with interpreted_kernels() as launches:
        assert count_changed(many) == [number % 2 for number in range(1000)]
    assert launches == ["count"]


def test_a_delta_of_what_kernels_find_is_the_same() -> None:
    base = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    tuned = base.clone()
    tuned[::9, 2] += 1
    wanted = ParameterDelta.between("w", base, tuned, None)
    with interpreted_kernels() as launches:
        assert ParameterDelta.between("w", base, tuned, None) == wanted
        assert launches == ["count", "write_positions"]
        positions, may_have_nan = changed_positions(base.view(-1), base.view(-1))
    assert positions.dtype == torch.int64
    assert not positions.numel()
    assert not may_have_nan


def test_a_nan_that_was_not_in_the_base_is_told() -> None:
    base = [torch.zeros(5), torch.full((5,), float("nan")), torch.zeros(3, dtype=torch.int64)]
    tuned = [one.clone() for one in base]
    tuned[2][0] = 1
    with interpreted_kernels() as launches:
        assert not any(nan for _, nan in changed_positions_of_each(zip(base, tuned, strict=True)))
        tuned[0][3] = float("nan")
        found = list(changed_positions_of_each(zip(base, tuned, strict=True)))
    assert all(nan for _, nan in found)
    assert [places.tolist() for places, _ in found] == [[3], [], [0]]
    assert sorted(launches) == ["count"] * 4 + ["write_positions"] * 3


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_full_blocks_are_read_16_bytes_at_a_time(width: int) -> None:
    from rst.numerics import difference_triton as kernels
    from rst.numerics.blocks_triton import WORD, block_of

    constants = {"WORD": WORD[width], "BLOCK": block_of(width)}
    types = {"rows": "*i64", "row_of_block": "*i32", "counts": "*i32"}
    built = compile_kernel(kernels.count, types, constants, 90)
    assert built.wide[0] == 2 * constants["BLOCK"] * width // 16 // 128
    assert built.local_bytes == 0
    assert built.registers <= 96
    types = {"rows": "*i64", "row_of_block": "*i32", "ends": "*i64", "positions": "*i64"}
    assert compile_kernel(kernels.write_positions, types, constants, 90).local_bytes == 0
