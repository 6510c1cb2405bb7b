"""A share kept by kernels is, bit for bit, the one that torch keeps; more parameters are no more launches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rst.numerics.exactness import bit_equal
from rst.training.boundary_on_device import keep_about_
from rst.training.projection_eager import Pair, project_eager
from tests.compiled import compile_kernel
from tests.interpreted import interpreted_kernels
from tests.strategies import FLOAT_DTYPES, pairs, vectors

pytest.importorskip("triton", reason="Triton is not installed")
Weights = dict[str, Tensor]


def keep(tuned: Weights, base: Weights, ratio: float, step: int) -> tuple[Tensor | None, list[str]]:
    with interpreted_kernels() as launches:
        from rst.training.projection_triton import TritonProjection

        return keep_about_(tuned, base, ratio, TritonProjection(), step=step), launches


def check(base: Weights, tuned: Weights, ratio: float, step: int) -> list[str]:
    wanted = {name: tensor.clone() for name, tensor in tuned.items()}
    boundary = keep_about_(wanted, base, ratio, project_eager, step=step)
    found, launches = keep(tuned, base, ratio, step)
    assert found is not None
    assert boundary is not None
    assert bit_equal(found, boundary)
    assert all(bit_equal(tuned[name], wanted[name]) for name in wanted)
    return launches


@settings(max_examples=20)
@given(st.lists(pairs(30), min_size=1, max_size=4), st.sampled_from([0.001, 0.1, 0.5, 0.99]), st.integers(0, 3))
def test_the_bits_are_those_of_the_eager_selection(drawn: list[Pair], ratio: float, step: int) -> None:
    base, tuned = ({str(number): pair[side] for number, pair in enumerate(drawn)} for side in (0, 1))
    check(base, tuned, ratio, step)


@pytest.mark.parametrize("narrow", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("between", [1.1, 1.9])
def test_a_boundary_between_two_numbers_of_a_dtype_parts_them(narrow: torch.dtype, between: float) -> None:
    lower, upper = (
        torch.tensor([one, 0.0], dtype=narrow) for one in (2.0**-10, 2.0**-10 * (1 + torch.finfo(narrow).eps))
    )
    gap = float(upper[0] - lower[0])
    boundary = float(lower[0]) + (between - 1) * gap
    base = {
        "wide": torch.zeros(4, dtype=torch.float64),
        "lower": torch.zeros(2, dtype=narrow),
        "upper": -torch.zeros(2, dtype=narrow),
    }
    tuned = {"wide": torch.tensor([boundary, 0.0, 0.0, 0.0], dtype=torch.float64), "lower": lower, "upper": upper}
    check(base, tuned, 0.25, 0)  # the second largest of eight changes
    assert not tuned["lower"].any()
    assert tuned["upper"][0] > 0
    assert tuned["upper"][1].signbit()  # what did not change goes back too, and its sign


@given(st.data())
@settings(max_examples=10)
def test_nan_is_left_for_the_export_to_find(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOAT_DTYPES))
    base = {"w": data.draw(vectors(dtype, 20))}
    check(base, {"w": data.draw(vectors(dtype, 20, nan=True))}, 0.3, 0)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_a_sample_of_many(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(size, generator=generator).to(dtype) for name, size in (("a", 3500), ("b", 3001))}
    change = {name: 1e-2 * torch.randn(weight.numel(), generator=generator) for name, weight in base.items()}
    tuned = {name: weight + change[name].to(dtype) for name, weight in base.items()}
    launches = check(base, tuned, 0.5, 3)
    digits = 4 if dtype == torch.float64 else 2
    assert launches == ["histogram"] * digits + ["keep" if dtype.itemsize == 2 else "project"]


def test_many_parameters_need_no_more_launches() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {str(number): torch.randn(2, generator=generator).bfloat16() for number in range(120)}
    tuned = {name: weight + torch.randn(2, generator=generator).bfloat16() for name, weight in base.items()}
    assert check(base, tuned, 0.25, 1) == ["histogram"] * 2 + ["keep"]


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_half_precision_is_moved_16_bytes_at_a_time(capability: int) -> None:
    from rst.numerics.blocks_triton import FLOAT, WORD, block_of
    from rst.training import boundary_triton

    types = {"rows": "*i64", "row_of_block": "*i32", "value_there": "*fp32", "limit_there": "*fp32"}
    constants = {"WORD": WORD[2], "FLOAT": FLOAT[torch.bfloat16], "BLOCK": block_of(2)}
    built = compile_kernel(boundary_triton.keep, types, constants, capability)
    each = constants["BLOCK"] * 2 // 16 // 128
    assert built.wide == (2 * each, each)
    assert built.local_bytes == 0
    assert built.registers <= 96


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_the_histogram_needs_no_memory_of_its_own(dtype: torch.dtype) -> None:
    from rst.numerics.blocks_triton import FLOAT, WORD
    from rst.numerics.rounding import wide_dtype
    from rst.training import boundary_triton

    types = {
        "rows": "*i64",
        "row_of_block": "*i32",
        "first": "i32",
        "stride": "i32",
        "prefix": "*i64",
        "counts": "*i32",
    }
    constants = {"WORD": WORD[dtype.itemsize], "FLOAT": FLOAT[dtype], "WIDE": FLOAT[wide_dtype(dtype)]}
    built = compile_kernel(boundary_triton.histogram, types, {**constants, "SHIFT": 16, "BLOCK": 1024}, 90)
    assert built.local_bytes == 0
    assert built.registers <= 96
