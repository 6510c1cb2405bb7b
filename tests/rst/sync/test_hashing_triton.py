"""The state of weights by a kernel is the number that the CPU computes, in one launch for each width of words."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rst.sync import Follower, Publisher, fingerprint_state
from rst.sync.hashing import hash_at, hash_sum
from tests.compiled import compile_kernel
from tests.interpreted import interpreted_kernels
from tests.strategies import FLOAT_DTYPES, vectors

pytest.importorskip("triton", reason="Triton is not installed")


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    dtype, size, before = (
        draw(st.sampled_from(FLOAT_DTYPES)),
        draw(st.integers(0, 40)),
        draw(st.sampled_from([0, 1, 3])),
    )
    return draw(vectors(dtype, size + before, nan=True))[before:]


@settings(max_examples=15)
@given(st.lists(weights(), max_size=4), st.sampled_from([1, 2]))
def test_a_state_is_the_same_number(drawn: list[Tensor], version: int) -> None:
    named = {str(number): tensor for number, tensor in enumerate(drawn)}
    wanted = fingerprint_state(named, version)
    with interpreted_kernels() as launches:
        assert fingerprint_state(named, version) == wanted
    assert set(launches) <= {"add_hashes"}
    assert len(launches) <= (1 if version == 2 else 3)


@settings(max_examples=15)
@given(st.integers(0, 2**64 - 1), weights(), st.data())
def test_words_at_places(seed: int, values: Tensor, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.integers(0, 2**40), min_size=len(values), max_size=len(values)))
    places = torch.tensor(drawn, dtype=torch.int64)
    wanted = hash_at(seed, places, values)
    with interpreted_kernels() as launches:
        assert hash_at(seed, places, values) == wanted
        assert hash_sum([(seed, places, values)] * 3) == 3 * wanted % 2**64
    assert launches == ["add_hashes"] * 2 * bool(len(values))


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3).bfloat16())


def test_a_chain_is_published_and_followed_the_same(tmp_path: Path) -> None:
    def states(folder: Path) -> list[str]:
        model = _model()
        publisher = Publisher(model, folder)
        follower = Follower(_model(), folder)
        found = [publisher.state]
        for step in range(2):
            with torch.no_grad():
                for weight in model.parameters():
                    weight.view(-1)[step::3] += 1
            found.append(publisher.publish().state)
        follower.update()
        follower.verify()
        return found

    wanted = states(tmp_path / "cpu")
    with interpreted_kernels() as launches:
        assert states(tmp_path / "kernels") == wanted
    assert {"add_hashes", "count", "write_positions"} <= set(launches)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("width", [2, 8])
def test_full_blocks_are_read_16_bytes_at_a_time(width: int, capability: int) -> None:
    from rst.numerics.blocks_triton import WORD, block_of
    from rst.sync import hashing_triton

    types = {"rows": "*i64", "row_of_block": "*i32", "hashes": "*i64"}
    constants = {"WORD": WORD[width], "BLOCK": block_of(width)}
    built = compile_kernel(hashing_triton.add_hashes, types, constants, capability)
    assert built.wide[0] == constants["BLOCK"] * width // 16 // 128
    assert built.local_bytes == 0
    assert built.registers <= 128
