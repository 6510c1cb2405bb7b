"""Eq. 17, top-r % and bias selection against one-line references, over any weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rst import NonFiniteError, ResidualSparseTrainer, RSTConfig
from rst.numerics.exactness import bit_equal
from rst.numerics.kth_largest import kth_largest
from rst.schedule import Linear
from rst.training.projection_eager import project_eager
from tests.strategies import FLOAT_DTYPES, pairs, vectors


@torch.no_grad()
def select(
    tuned: dict[str, torch.Tensor], base: dict[str, torch.Tensor], config: RSTConfig, steps: int = 0
) -> dict[str, torch.Tensor]:
    """What a trainer keeps of `tuned` after so many steps."""
    model = nn.ParameterDict([(name, weights.clone()) for name, weights in base.items()])  # a dict it would sort
    trainer = ResidualSparseTrainer(model, config)
    for _ in range(steps):
        trainer.step()
    for name, weights in tuned.items():
        model[name].copy_(weights)
    trainer.select()
    return {name: model[name].detach() for name in base}


@given(pairs(), st.floats(0, 2))
def test_projection_is_the_where_of_equation_17(pair: tuple[torch.Tensor, torch.Tensor], tau: float) -> None:
    base, tuned = pair
    wanted = torch.where((tuned - base).abs() > tau, tuned, base)
    projected = tuned.clone()
    project_eager([(projected, base)], tau)
    assert bit_equal(projected, wanted)


@given(pairs(), st.floats(0, 2))
def test_projecting_twice_changes_nothing_more(pair: tuple[torch.Tensor, torch.Tensor], tau: float) -> None:
    base, tuned = pair
    project_eager([(tuned, base)], tau)
    once = tuned.clone()
    project_eager([(tuned, base)], tau)
    assert bit_equal(tuned, once)


def test_nan_stays_for_the_export_to_find() -> None:
    tuned = torch.tensor([float("nan"), 1.0])
    project_eager([(tuned, torch.ones(2))], 0.1)
    assert tuned[0].isnan()


@pytest.mark.parametrize("shape", [(0,), (), (3, 0), (70_001,), (2, 3, 4, 5), (300, 301)])
def test_projection_of_every_memory_layout(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=generator)
    tuned = base + torch.randn(shape, generator=generator) * 0.1
    wanted = torch.where((tuned - base).abs() > 0.1, tuned, base)
    layouts = {"contiguous": (tuned.clone(), base)}
    if len(shape) == 4:
        last = torch.channels_last
        layouts["channels last"] = (tuned.to(memory_format=last), base.to(memory_format=last))
        layouts["mixed"] = (tuned.to(memory_format=last), base)
    if len(shape) == 2:
        layouts["transposed"] = (tuned.t().contiguous().t(), base.t().contiguous().t())
        wide = torch.zeros(shape[0], 2 * shape[1])
        wide[:, ::2] = tuned
        layouts["strided"] = (wide[:, ::2], base)
    for name, (weights, origin) in layouts.items():
        project_eager([(weights, origin)], 0.1)
        assert torch.equal(weights, wanted), name


@given(st.data())
def test_kth_largest_is_that_of_a_sort(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    sizes = data.draw(st.lists(st.integers(0, 20), min_size=1))
    arrays = [data.draw(vectors(dtype, size)).abs().numpy() for size in sizes]
    numbers = np.concatenate(arrays)
    if not numbers.size:
        return
    k = data.draw(st.integers(1, numbers.size))
    check_kth(arrays, k)


def check_kth(arrays: list[np.ndarray], k: int) -> None:
    numbers = np.concatenate(arrays)
    found = kth_largest(lambda array, step: array[::step], arrays, k, numbers.size)
    assert found.value == np.sort(numbers)[numbers.size - k]
    assert found.above == np.count_nonzero(numbers > found.value)
    starts = np.cumsum([0, *(array.size for array in arrays)])
    ties = [place for start, positions in zip(starts, found.ties, strict=False) for place in positions + start]
    assert ties == np.flatnonzero(numbers == found.value)[: k - found.above].tolist()


@pytest.mark.parametrize("k", [1, 2, 1000, 500_000, 999_999, 1_000_000])
@pytest.mark.parametrize("kind", ["random", "sorted", "few values", "sample is misled"])
def test_kth_largest_of_more_than_the_sample(kind: str, k: int) -> None:
    numbers = np.abs(np.random.default_rng(0).standard_normal(1_000_000)).astype(np.float32)
    if kind == "sorted":
        numbers.sort()
    if kind == "few values":
        numbers = np.round(numbers, 1)
    if kind == "sample is misled":
        numbers[::4] *= 1e-3  # every fourth is what the sample sees
    check_kth(np.array_split(numbers, 7), k)


@pytest.mark.parametrize(
    ("seen", "k"),
    [
        (0.5, 100_000),  # above the bracket around what the sample sees lie exactly k
        (2.5, 500_000),  # the k-th lies below the bracket
    ],
)
def test_kth_largest_outside_the_bracket_of_the_sample(seen: float, k: int) -> None:
    numbers = np.random.default_rng(0).permutation(np.linspace(0.1, 0.4, 1_000_000))
    numbers[::4] = seen
    numbers[1:400_000:4] = 2.0
    check_kth([numbers], k)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_kth_largest_of_few(size: int) -> None:
    for k in range(1, size + 1):
        check_kth([np.arange(size) / 2], k)


@given(st.data())
def test_top_keeps_exactly_the_budget_of_largest_changes(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOAT_DTYPES))
    sizes = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    base = {str(i): data.draw(vectors(dtype, size)) for i, size in enumerate(sizes)}
    tuned = {name: data.draw(vectors(dtype, weights.numel())) for name, weights in base.items()}
    ratio = data.draw(st.floats(0.01, 1.0))
    kept = select(tuned, base, RSTConfig(ratio=ratio))

    change = torch.cat([(tuned[n] - base[n]).abs() * (tuned[n] != base[n]) for n in base]).double()
    change = torch.where(change.isnan(), torch.zeros_like(change), change)
    order = sorted(range(change.numel()), key=lambda i: (-change[i].item(), i))
    chosen = [i for i in order[: round(ratio * change.numel())] if change[i] > 0]
    keep = torch.zeros(change.numel(), dtype=torch.bool)
    keep[chosen] = True
    wanted = torch.where(keep, torch.cat(list(tuned.values())), torch.cat(list(base.values())))
    assert bit_equal(torch.cat(list(kept.values())), wanted)


@pytest.mark.parametrize(("half", "unit"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_top_compares_parameters_of_several_dtypes_exactly(half: torch.dtype, unit: float) -> None:
    below, boundary, above = 0.25, 0.25 * (1 + 0.9 * unit), 0.25 * (1 + unit)  # the boundary rounds up in `half`
    before = {"wide": torch.tensor([boundary, 0.1]), "narrow": torch.tensor([below, above], dtype=half)}
    base = {name: torch.zeros_like(weights) for name, weights in before.items()}
    kept = select(before, base, RSTConfig(ratio=0.5))
    assert kept["wide"].tolist() == [before["wide"][0], 0.0]
    assert kept["narrow"].tolist() == [0.0, above]


def test_of_equal_changes_the_first_are_kept_over_parameters_and_their_chunks() -> None:
    base = {"small": torch.zeros(3), "large": torch.zeros(600, 1000)}
    tuned = {name: weights.clone() for name, weights in base.items()}
    tuned["small"][:2] = torch.tensor([1.0, 0.25])
    tuned["large"].view(-1)[[0, 290_000, 290_001, 599_999]] = 0.25
    wanted = {name: weights.clone() for name, weights in tuned.items()}
    wanted["large"].view(-1)[290_001:] = 0.0
    kept = select(tuned, base, RSTConfig(ratio=4 / 600_003))
    assert all(torch.equal(kept[name], wanted[name]) for name in base)


def test_a_zero_of_the_other_sign_is_no_change_to_keep() -> None:
    kept = select({"w": torch.tensor([-0.0, 1.0, 0.0])}, {"w": torch.zeros(3)}, RSTConfig(ratio=1.0))
    assert bit_equal(kept["w"], torch.tensor([0.0, 1.0, 0.0]))


def test_nan_has_no_rank() -> None:
    tuned = {"v": torch.ones(2), "w": torch.tensor([1.0, float("nan"), float("nan")])}
    base = {name: torch.zeros_like(weights) for name, weights in tuned.items()}
    with pytest.raises(NonFiniteError, match=r"\b2 of 3\b") as caught:
        select(tuned, base, RSTConfig(ratio=0.5))
    assert caught.value.parameter == "w"


def test_a_threshold_may_follow_a_schedule() -> None:
    config = RSTConfig(threshold=Linear(0.0, 4.0), total_steps=10)
    for steps, wanted in ((0, [1.0, 2.0, 3.0]), (5, [0.0, 0.0, 3.0]), (10, [0.0, 0.0, 0.0])):
        kept = select({"w": torch.tensor([1.0, 2.0, 3.0])}, {"w": torch.zeros(3)}, config, steps)
        assert kept["w"].tolist() == wanted


def test_bias_moves_biases_only() -> None:
    base = {"weight": torch.zeros(3), "bias": torch.zeros(2), "in_proj_bias": torch.zeros(1)}
    kept = select({name: torch.ones_like(weights) for name, weights in base.items()}, base, RSTConfig(select="bias"))
    assert [name for name, weights in kept.items() if weights.any()] == ["bias", "in_proj_bias"]
