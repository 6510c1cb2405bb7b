"""Streams of compressed numbers come back bit for bit, and a hostile stream is refused before it costs memory."""

import contextlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rst.delta.pcodec_stream import compress, decompress
from rst.errors import DeltaFormatError
from rst.files.budget import Budget
from rst.numerics.dtypes import NAME_OF_DTYPE
from rst.numerics.exactness import bit_equal
from tests.refusal import refused

DTYPES = list(NAME_OF_DTYPE)


@st.composite
def arrays(draw: st.DrawFn) -> torch.Tensor:
    """Any bit patterns of any dtype, NaN included; sometimes repeated, so that there is something to compress."""
    dtype = draw(st.sampled_from(DTYPES))
    size = draw(st.integers(1, 40))
    raw = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).repeat(draw(st.sampled_from([1, 100])))


@given(arrays(), st.integers(1, 5))
def test_any_bits_survive(array: torch.Tensor, parts: int) -> None:
    lengths = [len(part) for part in torch.arange(array.numel()).tensor_split(parts)]
    assert bit_equal(decompress("here", "values", compress(array, lengths), array.dtype, Budget(0)), array)


def test_long_parameters_are_split_and_short_ones_pooled() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [600_000, *[3] * 5000, 0, 9000, 7]
    array = torch.randint(0, 1000, (sum(lengths),), generator=generator, dtype=torch.int32)
    stream = compress(array, lengths)
    assert bit_equal(decompress("here", "values", stream, torch.int32, Budget(0)), array)
    assert stream.numel() * 8 / array.numel() < math.log2(1000) + 0.1


def test_chunks_end_with_parameters_of_8192_entries_and_no_sooner() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(0, 1000, (8192,), generator=generator)
    narrow = torch.randint(0, 3, (8192,), generator=generator)
    unlike, alike = torch.cat([wide, narrow]), torch.cat([wide, wide.flip(0)])
    assert compress(unlike, [8192, 8192]).numel() < compress(unlike, [16384]).numel()
    assert compress(alike, [8192, 8192]).numel() > compress(alike, [16384]).numel()


@pytest.mark.parametrize("size", [1, 5, 100_000, 3_000_000])
def test_a_regular_array_in_short_chunks_is_what_its_bytes_explain(size: int) -> None:
    array = torch.zeros(size, dtype=torch.int64)
    stream = compress(array, [size], regular=True)
    assert torch.equal(decompress("here", "values", stream, torch.int64, Budget(stream.numel())), array)


def test_entries_that_the_bytes_do_not_explain_are_refused_before_there_is_memory() -> None:
    array = torch.zeros(3_000_000, dtype=torch.int64)
    with refused(DeltaFormatError, 3_000_000, file="here", parameter="values"):
        decompress("here", "values", compress(array, [array.numel()]), torch.int64, Budget(0))


def test_the_streams_of_a_file_share_its_budget() -> None:
    array, budget = torch.zeros(600_000, dtype=torch.int64), Budget(0)
    stream = compress(array, [array.numel()])
    decompress("here", "gaps", stream, torch.int64, budget)
    with refused(DeltaFormatError, 600_000, file="here", parameter="values"):
        decompress("here", "values", stream, torch.int64, budget)


def test_low_mantissa_bits_of_residuals_cost_little() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(50_000, generator=generator) * 0.02
    noise = torch.empty(50_000).exponential_(generator=generator) + 1
    residuals = (base + torch.randn(50_000, generator=generator).sign() * noise * 1e-6) - base
    assert compress(residuals, [50_000]).numel() * 8 / 50_000 < 14.7


@pytest.mark.parametrize("zeros", [1, 2, 9])
def test_low_mantissa_bits_that_are_all_zero_cost_nothing(zeros: int) -> None:
    weights = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    cut = (weights.view(torch.int32) >> zeros << zeros).view(torch.float32)
    saved = compress(weights, [20_000]).numel() - compress(cut, [20_000]).numel()
    assert saved * 8 / 20_000 > zeros - 0.1


def test_multiples_of_a_thousandth_cost_their_ten_bits() -> None:
    grid = torch.randint(0, 1000, (20_000,), generator=torch.Generator().manual_seed(0)) / 1000
    assert compress(grid, [20_000]).numel() * 8 / 20_000 < 11.5


@pytest.mark.parametrize("claim", [1 << 30, 1 << 62, (1 << 64) - 1])
def test_a_stream_that_announces_more_than_it_can_hold_is_refused(claim: int) -> None:
    stream = compress(torch.arange(100), [100])
    stream[:8] = torch.frombuffer(bytearray(claim.to_bytes(8, "little")), dtype=torch.uint8)
    with refused(DeltaFormatError, claim, file="here", parameter="gaps"):
        decompress("here", "gaps", stream, torch.int64, Budget(0))


@pytest.mark.parametrize("claim", [0, 99, 101, 4000])
def test_the_announced_number_must_be_the_true_one(claim: int) -> None:
    stream = compress(torch.arange(100), [100])
    stream[:8] = torch.frombuffer(bytearray(claim.to_bytes(8, "little")), dtype=torch.uint8)
    with refused(DeltaFormatError, file="here", parameter="gaps"):
        decompress("here", "gaps", stream, torch.int64, Budget(0))


@pytest.mark.parametrize(
    "stream",
    [torch.empty(0, dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8), torch.zeros(50), torch.ones(4, 20).byte()],
)
def test_what_is_no_stream_is_refused(stream: torch.Tensor) -> None:
    with refused(DeltaFormatError, stream.dtype, tuple(stream.shape), file="here", parameter="gaps"):
        decompress("here", "gaps", stream, torch.int64, Budget(0))


def test_a_bool_that_is_neither_0_nor_1_is_refused() -> None:
    with refused(DeltaFormatError, "bool", file="here", parameter="values"):
        decompress("here", "values", compress(torch.tensor([0, 1, 2], dtype=torch.int8), [3]), torch.bool, Budget(0))


def test_another_dtype_is_refused() -> None:
    with refused(DeltaFormatError, "torch.float32", file="here", parameter="values"):
        decompress("here", "values", compress(torch.arange(100), [100]), torch.float32, Budget(0))


@given(st.data())
def test_a_damaged_stream_is_refused_or_gives_numbers(data: st.DataObject) -> None:
    array = data.draw(st.sampled_from([torch.arange(300) ** 2, torch.arange(300) / 7, torch.ones(300).bfloat16()]))
    stream = compress(array, [300])
    place = data.draw(st.integers(0, stream.numel() - 1))
    stream[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([stream.numel(), place]))
    with contextlib.suppress(DeltaFormatError):
        assert decompress("here", "gaps", stream[:cut].clone(), array.dtype, Budget(0)).dtype == array.dtype
