"""The state of a set of weights: the documented formulas, on every dtype, brought up to date by changes."""

from itertools import pairwise, product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rst.numerics.exactness import bits
from rst.numerics.fingerprint import digest_text
from rst.shards.blocks import Block
from rst.sync import fingerprint_state
from rst.sync.block_words import BlockWords
from rst.sync.hashing import _hash_on_device, hash_all, hash_at
from rst.sync.state import changed_state, hash_change, seed_of
from rst.sync.words import touched_words, weights_a_word, words_with

_PIECE = 1 << 17
_MODULUS = 1 << 64
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.int64, torch.bool]


def _mix(number: int) -> int:
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % _MODULUS
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % _MODULUS
    return number ^ (number >> 31)


def _seed(name: str, weight: Tensor) -> int:
    digits = digest_text(f"{name} {weight.dtype} {list(weight.shape)}")[:16]
    return int.from_bytes(bytes.fromhex(digits), "little")


def _words(weight: Tensor, version: int) -> list[int]:
    if version == 1:
        return bits(weight.reshape(-1)).tolist()
    raw = bytes(weight.reshape(-1).view(torch.uint8).tolist()) if weight.numel() else b""
    return [int.from_bytes(raw[start : start + 8], "little") for start in range(0, len(raw), 8)]


def by_the_formula(weights: dict[str, Tensor], version: int) -> str:
    total = 0
    for name, weight in weights.items():
        seed = _seed(name, weight)
        total += _mix(seed)
        for place, value in enumerate(_words(weight, version)):
            total += _mix((seed + place * 0x9E3779B97F4A7C15 + value * 0x2545F4914F6CDD1D) % _MODULUS)
    return f"{total % _MODULUS:016x}"


def _tensor(size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return (noise * 50).to(dtype) if dtype == torch.int64 else noise.to(dtype)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_formula(dtype: torch.dtype, version: int) -> None:
    weights = {"a.weight": _tensor(60, dtype).view(3, 4, 5), "a.scale": _tensor(1, dtype)[0], "none": _tensor(0, dtype)}
    assert fingerprint_state(weights, version) == by_the_formula(weights, version)
    assert fingerprint_state(weights) == by_the_formula(weights, 2)


def test_weights_in_any_place_of_memory() -> None:
    row = _tensor(61, torch.bfloat16)
    images = row[:60].view(1, 3, 4, 5).to(memory_format=torch.channels_last)
    for weight in (row[1:], row[::2], row[:1].expand(5), row[3:].view(2, 29).T, images):
        assert fingerprint_state({"w": weight}) == by_the_formula({"w": weight.clone().contiguous()}, 2)


@pytest.mark.parametrize("size", [_PIECE - 1, _PIECE, _PIECE + 1])
def test_the_formula_where_the_work_is_divided(size: int) -> None:
    weights = {"w": _tensor(size, torch.bfloat16)}
    assert fingerprint_state(weights) == by_the_formula(weights, 2)


def test_shares_of_a_large_tensor_and_what_a_gpu_computes_are_the_same_sum() -> None:
    weight, seed = _tensor(3 * (1 << 20) + 7, torch.bfloat16), _MODULUS - 5
    assert hash_all(seed, weight) == _hash_on_device(seed, torch.arange(weight.numel()), weight) % _MODULUS


@settings(max_examples=50, deadline=None)
@given(
    version=st.sampled_from([1, 2]),
    rows=st.integers(1, 400),
    columns=st.integers(1, 400),
    across=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    positions_dtype=st.sampled_from([torch.int32, torch.int64]),
    data=st.data(),
)
def test_a_change_leads_to_the_state_that_reading_everything_again_finds(
    version: int,
    rows: int,
    columns: int,
    across: bool,
    dtype: torch.dtype,
    positions_dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    size, each = rows * columns, weights_a_word(dtype, version)
    before, other = _tensor(size, dtype), _tensor(size, dtype, seed=1)
    chosen = torch.rand(size, generator=torch.Generator().manual_seed(2)) < data.draw(st.floats(0, 1))
    positions = chosen.nonzero().squeeze(1)
    after = before.clone()
    bits(after)[positions] = bits(other)[positions]
    shaped = bits(before).view(rows, columns)
    live = (shaped.T.contiguous().T if across else shaped).view(dtype)
    words = touched_words(live, positions.to(positions_dtype), after[positions], each)
    changed = {"w": after.view(rows, columns)}
    assert words.places.numel() <= positions.numel()
    assert changed_state(
        fingerprint_state({"w": live}, version), hash_change("w", dtype, (rows, columns), words)
    ) == fingerprint_state(changed, version)


@settings(max_examples=200, deadline=None)
@given(
    version=st.sampled_from([1, 2]),
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    data=st.data(),
)
def test_what_processes_have_of_a_tensor_adds_up_to_the_whole(
    version: int, dtype: torch.dtype, shape: list[int], data: st.DataObject
) -> None:
    """Each block hashes its own words; what is left of all blocks, side by side, are the words across them."""
    cuts = [sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    grid = product(*(list(pairwise(cut)) for cut in cuts))
    spans = [Block(tuple(shape), tuple(a for a, _ in box), tuple(b - a for a, b in box)) for box in grid]
    weight, other, each = _tensor(prod(shape), dtype), _tensor(prod(shape), dtype, 1), weights_a_word(dtype, version)
    chosen = torch.rand(weight.numel(), generator=torch.Generator().manual_seed(2)) < 0.3
    after, seed = torch.where(chosen, bits(other), bits(weight)), seed_of("w", dtype, tuple(shape))
    left, hashed, change = [torch.empty(0, dtype=torch.int64)], _mix(seed), 0
    for block in spans:
        words = BlockWords(block, each)
        own = block.to_global(torch.arange(block.numel))
        part, positions = bits(weight)[own], chosen[own].nonzero().squeeze(1)
        hashed += words.hash_inside(seed, part)
        change += hash_change("w", dtype, tuple(shape), words.touched(part, positions, after[own][positions]))
        left.append(own[words.edges()])
    at = torch.cat(left).unique()
    places, which = torch.unique_consecutive(at // each, return_inverse=True)
    across = [words_with(which * each + at % each, values[at], len(places), each) for values in (bits(weight), after)]
    hashed += hash_at(seed, places, across[0])
    change += hash_at(seed, places, across[1]) - hash_at(seed, places, across[0])
    for found, values in ((hashed, bits(weight)), (hashed + change, after)):
        wanted = {"w": (values != 0 if dtype == torch.bool else values.view(dtype)).view(shape)}
        assert f"{found % _MODULUS:016x}" == fingerprint_state(wanted, version)
