"""Residuals are tried out, and neighbours tried where they fail."""

import pytest
import torch

from rst.numerics.exactness import (
    RESIDUAL_DTYPES,
    as_bytes,
    bit_equal,
    bits,
    exact_residuals,
    from_ordered_keys,
    ordered_keys,
)

RAW = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def unrelated(dtype: torch.dtype, size: int = 300_000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple((torch.randn(size, generator=generator) * 0.05).to(dtype) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_neighbour_rescues_what_the_plain_difference_misses(dtype: torch.dtype) -> None:
    base, tuned = unrelated(dtype)
    residuals, failed = exact_residuals(base, tuned)
    plain = tuned - base
    rescued = ~failed & (bits(residuals) != bits(plain))
    assert rescued.any()
    assert bit_equal((base + residuals)[~failed], tuned[~failed])
    assert (bits(base + plain) != bits(tuned))[rescued].all()
    one = rescued.nonzero()[0]
    assert not exact_residuals(base[one], tuned[one])[1]  # one by itself as well


@pytest.mark.parametrize("dtype", RESIDUAL_DTYPES)
def test_no_neighbour_reaches_what_goes_to_the_overlay(dtype: torch.dtype) -> None:
    base, tuned = unrelated(dtype)
    residuals, failed = exact_residuals(base, tuned)
    for direction in (float("-inf"), float("inf")):
        neighbour = torch.nextafter(residuals, torch.tensor(direction, dtype=dtype))
        assert not (bits(base + neighbour) == bits(tuned))[failed].any()


def test_where_no_number_reaches_the_residual_is_zero() -> None:
    base = torch.tensor([1.0, float("inf"), 3e38])
    residuals, failed = exact_residuals(base, torch.tensor([float("inf"), 1.0, -3e38]))
    assert failed.all()
    assert bit_equal(residuals, torch.zeros(3))


@pytest.mark.parametrize("dtype", RESIDUAL_DTYPES)
def test_ordered_keys_are_a_bijection_in_numerical_order(dtype: torch.dtype) -> None:
    raw = RAW[dtype.itemsize]
    info = torch.iinfo(raw)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(info.min, info.max, (10_000,), dtype=raw, generator=generator).view(dtype)
    assert bit_equal(from_ordered_keys(ordered_keys(weights), dtype), weights)
    ladder = torch.tensor([float("-inf"), -1.0, -1e-7, -0.0, 0.0, 1e-7, 1.0, float("inf")], dtype=dtype)
    keys = ordered_keys(ladder)
    assert (keys[1:] > keys[:-1]).all()
    assert int(keys[4] - keys[3]) == 1


@pytest.mark.parametrize("shape", [(0,), (3, 0), (), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.bfloat16, torch.uint8])
def test_bytes_of_any_tensor_whatever_its_strides(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    spread = torch.ones((), dtype=dtype).expand(shape)  # all strides are 0
    assert as_bytes(spread).shape == (spread.numel() * dtype.itemsize,)
    assert as_bytes(spread).dtype == torch.uint8
