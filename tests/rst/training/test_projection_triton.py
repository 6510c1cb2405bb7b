"""Eq. 17's kernel leaves the bits of the eager projection, in one launch; compiled, it moves 16 bytes at a time."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rst import ResidualSparseTrainer, RSTConfig
from rst.numerics.exactness import bit_equal
from rst.training.projection_eager import Pair, project_eager
from tests.compiled import compile_kernel
from tests.interpreted import interpreted_kernels
from tests.rst.training.test_projection import OperationNames, any_weights
from tests.strategies import FLOAT_DTYPES, vectors

pytest.importorskip("triton", reason="Triton is not installed")
THRESHOLDS = [0.0, 1e-6, 3e-4, 0.1, 1.0, 1e30, 5e-324, float("inf")]


@st.composite
def weights(draw: st.DrawFn) -> list[Pair]:
    """Pairs of any dtypes, some of which start where no 16 bytes do, NaN among them."""
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        dtype, size = draw(st.sampled_from(FLOAT_DTYPES)), draw(st.integers(0, 40))
        both = []
        for _ in range(2):
            before = draw(st.sampled_from([0, 0, 1, 3]))
            both.append(draw(vectors(dtype, size + before, nan=True))[before:])
        if draw(st.booleans()):
            both[0].copy_(torch.nextafter(both[1], both[0]))
        drawn.append((both[0], both[1]))
    return drawn


def copies(pairs: list[Pair]) -> list[Pair]:
    """The same bits at the same alignment."""
    copied = []
    for pair in pairs:
        fresh = [
            torch.zeros(one.storage_offset() + one.numel(), dtype=one.dtype)[one.storage_offset() :] for one in pair
        ]
        copied.append((fresh[0].copy_(pair[0]), fresh[1].copy_(pair[1])))
    return copied


@settings(max_examples=20)
@given(weights(), st.sampled_from(THRESHOLDS))
def test_the_bits_are_those_of_the_eager_projection(pairs: list[Pair], threshold: float) -> None:
    wanted, found = copies(pairs), copies(pairs)
    project_eager(wanted, threshold)
    with interpreted_kernels() as launches:
        count = _projection()(found, threshold)
    assert all(
        bit_equal(one, other) for pair in zip(found, wanted, strict=True) for one, other in zip(*pair, strict=True)
    )
    kept = sum(
        int((weight.view(torch.uint8) != origin.view(torch.uint8)).view(len(weight), -1).any(1).sum())
        for weight, origin in wanted
        if len(weight)
    )
    assert count() == kept
    assert len(launches) == len({weight.dtype for weight, _ in pairs if weight.numel()})


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_a_bound_that_is_on_the_device_is_not_rounded(dtype: torch.dtype) -> None:
    base, tuned = any_weights(dtype, 300)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bound = (tuned.to(wide) - base.to(wide)).abs()[7]
    wanted = torch.where((tuned.to(wide) - base.to(wide)).abs() > bound, tuned, base)
    with interpreted_kernels():
        _projection()([(tuned, base)], bound)
    assert bit_equal(tuned, wanted)


def test_any_number_of_weights_is_one_launch_and_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(int(not number % 3), generator=generator), torch.zeros(int(not number % 3)))
        for number in range(2400)
    ]
    wanted = copies(pairs)
    project_eager(wanted, 1.0)
    with interpreted_kernels() as launches:
        project = _projection()
        project(iter(pairs), 1.0)
        assert launches == ["project"]
        with monkeypatch.context() as patch:
            patch.setattr("rst.training.projection_triton.TensorTable", None)  # none is built again
            with OperationNames() as operations:
                project(pairs, 0.0)
    assert launches == ["project"] * 2
    assert operations.seen <= {"empty", "new_empty", "set_", "copy_"}  # the interpreter's own
    assert all(bit_equal(found[0], right[0]) for found, right in zip(pairs, wanted, strict=True))


def test_memory_with_gaps_is_left_to_the_eager_projection() -> None:
    tuned, origin = torch.ones(6), torch.zeros(6)
    last = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    with interpreted_kernels() as launches:
        count = _projection()([(tuned[::2], origin[::2]), (last, torch.zeros_like(last))], 1.0)
    assert tuned.tolist() == [0, 1, 0, 1, 0, 1]
    assert not last.any()
    assert launches == ["project"]
    assert count is None


def test_a_copy_has_to_look_for_itself() -> None:
    with interpreted_kernels():
        project = _projection()
        tuned = torch.ones(3)
        project([(tuned, torch.zeros(3))], 1.0)
        for other in (copy.deepcopy(project), pickle.loads(pickle.dumps(project))):
            weight = torch.ones(4)
            other([(weight, torch.zeros(4))], 1.0)
            assert not weight.any()


def train(steps: int = 3) -> tuple[nn.Module, ResidualSparseTrainer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.LayerNorm(9), nn.Linear(9, 4).to(torch.bfloat16))
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-3, base_storage="device"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    trainer.attach(optimizer)
    for _ in range(steps):
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return model, trainer


def test_a_step_of_the_trainer_is_one_launch_a_dtype() -> None:
    wanted, _ = train()
    with interpreted_kernels() as launches:
        found, trainer = train()
        assert launches == ["project"] * 2 * 3
        assert trainer.status().kept == trainer.count_changed() > 0
        assert launches == ["project"] * 2 * 3  # it counted as it went
        with torch.no_grad():
            found[0].bias += 1
            kept = trainer.count_changed()
        assert launches[6:] == ["count"] * 2
        assert kept == sum(int((weight != trainer.base[name]).sum()) for name, weight in found.named_parameters())
        found[0].bias.data -= 1
    parameters = zip(found.parameters(), wanted.parameters(), strict=True)
    assert all(bit_equal(one.data, other.data) for one, other in parameters if one is not found[0].bias)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_full_blocks_are_moved_16_bytes_at_a_time(dtype: torch.dtype, capability: int) -> None:
    from rst.training import projection_triton

    types = {"rows": "*i64", "row_of_block": "*i32", "bound": "fp64", "kept": "*i32"}
    constants = projection_triton.constants(dtype) | {"bound_there": None}
    built = compile_kernel(projection_triton.project, types, constants, capability)
    each = constants["BLOCK"] * dtype.itemsize // 16 // 128  # of a stream, by each of 128 threads
    assert built.wide == (2 * each, each)
    assert built.local_bytes == 0
    assert built.registers <= 80
    assert ".ftz" not in built.ptx  # subnormal changes count


def _projection() -> Any:
    from rst.training.projection_triton import TritonProjection

    return TritonProjection()
