"""The state of a set of weights: the documented formula, on every dtype, brought up to date by changes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rst.numerics.exactness import bits
from rst.numerics.fingerprint import digest_text
from rst.shards.blocks import Block
from rst.sync import fingerprint_state
from rst.sync.hashing import _hash_on_device, hash_all
from rst.sync.state import changed_state, hash_block, state_of

_PIECE = 1 << 15
_MODULUS = 1 << 64
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.int64, torch.bool]


def _mix(number: int) -> int:
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % _MODULUS
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % _MODULUS
    return number ^ (number >> 31)


def _seed(name: str, weight: Tensor) -> int:
    digits = digest_text(f"{name} {weight.dtype} {list(weight.shape)}")[:16]
    return int.from_bytes(bytes.fromhex(digits), "little")


def by_the_formula(weights: dict[str, Tensor]) -> str:
    total = 0
    for name, weight in weights.items():
        seed = _seed(name, weight)
        total += _mix(seed)
        for place, value in enumerate(bits(weight.reshape(-1)).tolist()):
            total += _mix((seed + place * 0x9E3779B97F4A7C15 + value * 0x2545F4914F6CDD1D) % _MODULUS)
    return f"{total % _MODULUS:016x}"


def _tensor(size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return (noise * 50).to(dtype) if dtype == torch.int64 else noise.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_formula(dtype: torch.dtype) -> None:
    weights = {"a.weight": _tensor(60, dtype).view(3, 4, 5), "a.scale": _tensor(1, dtype)[0], "none": _tensor(0, dtype)}
    assert fingerprint_state(weights) == by_the_formula(weights)


@pytest.mark.parametrize("size", [_PIECE - 1, _PIECE, _PIECE + 1])
def test_the_formula_where_the_work_is_divided(size: int) -> None:
    weights = {"w": _tensor(size, torch.bfloat16)}
    assert fingerprint_state(weights) == by_the_formula(weights)


def test_shares_of_a_large_tensor_and_what_a_gpu_computes_are_the_same_sum() -> None:
    weight, seed = _tensor(3 * (1 << 20) + 7, torch.bfloat16), _MODULUS - 5
    assert hash_all(seed, weight) == _hash_on_device(seed, torch.arange(weight.numel()), weight) % _MODULUS


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 3 * _PIECE),
    dtype=st.sampled_from(DTYPES),
    positions_dtype=st.sampled_from([torch.int32, torch.int64]),
    data=st.data(),
)
def test_a_change_leads_to_the_state_that_reading_everything_again_finds(
    size: int, dtype: torch.dtype, positions_dtype: torch.dtype, data: st.DataObject
) -> None:
    before, other = _tensor(size, dtype), _tensor(size, dtype, seed=1)
    chosen = torch.rand(size, generator=torch.Generator().manual_seed(2)) < data.draw(st.floats(0, 1))
    positions = chosen.nonzero().squeeze(1)
    after = before.clone()
    bits(after)[positions] = bits(other)[positions]
    reached = changed_state(
        fingerprint_state({"w": before}),
        "w",
        dtype,
        (size,),
        positions.to(positions_dtype),
        bits(before)[positions],
        bits(after)[positions],
    )
    assert reached == fingerprint_state({"w": after})


@pytest.mark.parametrize("size", [(4, 5), (2, 5), (4, 2), (1, 1)])
def test_blocks_add_up_to_the_whole(size: tuple[int, int]) -> None:
    weight, hashed = torch.randn(4, 5), 0
    for row in range(0, 4, size[0]):
        for column in range(0, 5, size[1]):
            part = weight[row : row + size[0], column : column + size[1]].contiguous()
            hashed += hash_block("w", part, Block((4, 5), (row, column), tuple(part.shape)))
    assert state_of({"w": (weight.dtype, (4, 5))}, hashed) == fingerprint_state({"w": weight})
