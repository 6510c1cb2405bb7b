"""Whether weights are NaN is told from their bits, in any payload and sign, at any place."""

import pytest
import torch

from rst.delta.parameter_delta import count_nans
from rst.numerics.difference import may_hold_nan
from rst.numerics.exactness import bits
from rst.numerics.worker_pool import CHUNK

INFINITIES = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float64: 0x7FF << 52}


@pytest.mark.parametrize("dtype", INFINITIES, ids=str)
def test_every_nan_is_seen_and_nothing_else(dtype: torch.dtype) -> None:
    weights = torch.zeros(2 * CHUNK + 3, dtype=dtype)
    weights[::2], weights[1], weights[3] = -0.0, float("inf"), float("-inf")
    assert not may_hold_nan(weights)
    sign = torch.iinfo(bits(weights).dtype).min
    for place in (0, CHUNK - 1, CHUNK, 2 * CHUNK + 2):
        for payload in (1, INFINITIES[dtype] >> 7 & 0x7F or 1):
            for negative in (0, sign):
                kept = weights[place].clone()
                bits(weights)[place] = (INFINITIES[dtype] + payload) | negative
                assert may_hold_nan(weights)
                assert count_nans(weights) == 1
                weights[place] = kept


def test_other_layouts_and_dtypes() -> None:
    weights = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert count_nans(weights) == 0
    weights[1, 2, 3, 4] = float("nan")
    assert count_nans(weights) == 1
    assert count_nans(torch.full((3,), float("nan")).to(torch.float8_e4m3fn)) == 3
    assert count_nans(torch.arange(3)) == count_nans(torch.empty(0)) == 0
