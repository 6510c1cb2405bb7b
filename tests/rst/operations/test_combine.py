"""Combinations of sparse deltas agree with PEFT's of dense task tensors wherever the two mean the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from rst import (
    ConfigError,
    NonFiniteError,
    ParameterMismatchError,
    SparseDelta,
    WrongBaseError,
    combine,
    convert,
    export,
    merge,
)
from tests.refusal import refused

SHAPE = (13, 17)
WEIGHTS = [0.7, -0.4, 1.3]
SIGN_METHODS = ["total", "frequency"]
State = dict[str, Tensor]


def tasks(seed: int = 0, count: int = 3, share: float = 0.3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Dense task tensors of distinct magnitudes whose supports overlap in part."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(count, *SHAPE, generator=draw, dtype=torch.float64)
    return list((values * (torch.rand(count, *SHAPE, generator=draw) < share)).to(dtype))


def deltas_of(dense: list[Tensor]) -> list[SparseDelta]:
    """Deltas from zero, so that residuals are the task tensors themselves."""
    base = {"w": torch.zeros_like(dense[0])}
    return [export(base, {"w": task}) for task in dense]


def residual(delta: SparseDelta) -> Tensor:
    return delta["w"].to_coo().to_dense() if "w" in delta else torch.zeros(SHAPE, dtype=torch.float64)


def keep_share_of_changed(task: Tensor, density: float) -> Tensor:
    """PEFT's own pruning, told the share of all weights that is `density` of the changed ones."""
    kept = int(density * int(task.count_nonzero()))
    return merge_utils.prune(task, (kept + 0.5) / task.numel(), method="magnitude")


def ties_of(pruned: list[Tensor], weights: list[float], sign_method: str) -> Tensor:
    stacked = torch.stack(pruned)
    mask = merge_utils.calculate_majority_sign_mask(stacked, method=sign_method)
    weighted = stacked * torch.tensor(weights, dtype=stacked.dtype).view(-1, 1, 1)
    return merge_utils.disjoint_merge(weighted, mask)


def test_linear_is_task_arithmetic() -> None:
    dense = tasks()
    wanted = merge_utils.task_arithmetic(dense, torch.tensor(WEIGHTS, dtype=torch.float64))
    found = combine(deltas_of(dense), WEIGHTS)
    torch.testing.assert_close(residual(found), wanted, rtol=1e-15, atol=0)
    assert found["w"].nnz == wanted.count_nonzero()
    by_hand = sum((delta * weight for delta, weight in zip(deltas_of(dense)[1:], WEIGHTS[1:], strict=True)),
                  deltas_of(dense)[0] * WEIGHTS[0])  # fmt: skip
    torch.testing.assert_close(residual(by_hand), residual(found), rtol=1e-15, atol=0)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_magnitude_pruning_keeps_a_share_of_the_changed_entries(density: float) -> None:
    dense = tasks()
    pruned = [keep_share_of_changed(task, density) for task in dense]
    wanted = merge_utils.task_arithmetic(pruned, torch.tensor(WEIGHTS, dtype=torch.float64))
    found = combine(deltas_of(dense), WEIGHTS, method="magnitude_prune", density=density)
    torch.testing.assert_close(residual(found), wanted, rtol=1e-15, atol=0)


@pytest.mark.parametrize("sign_method", SIGN_METHODS)
@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
def test_ties(density: float, sign_method: str) -> None:
    dense = tasks(count=4)
    weights = [*WEIGHTS, 0.9]
    wanted = ties_of([keep_share_of_changed(task, density) for task in dense], weights, sign_method)
    found = combine(deltas_of(dense), weights, method="ties", density=density, majority_sign_method=sign_method)
    torch.testing.assert_close(residual(found), wanted, rtol=1e-14, atol=0)


def test_the_two_ways_to_elect_a_sign_differ_and_a_draw_is_positive() -> None:
    dense = [torch.tensor([[3.0, 1.0]]), torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, 0.0]])]
    total, frequency = (
        residual(combine(deltas_of(dense), [1.0] * 3, method="ties", density=1.0, majority_sign_method=how))
        for how in SIGN_METHODS
    )
    assert total.tolist() == [[3.0, 1.0]]
    assert frequency.tolist() == [[-1.0, 1.0]]


def test_dare_on_every_weight_is_what_peft_calls_it_for_the_same_draws() -> None:
    dense = tasks(share=0.6)
    deltas, density = deltas_of(dense), 0.4
    kept = [
        residual(combine([delta], [1.0], method="dare_linear", density=density, generator=torch.Generator()))
        for delta in deltas
    ]
    for task, survivors in zip(dense, kept, strict=True):
        held = survivors != 0
        assert 0.2 < held.sum() / task.count_nonzero() < 0.6
        torch.testing.assert_close(survivors[held], task[held] / density, rtol=1e-15, atol=0)
    for sign_method in SIGN_METHODS:
        found = combine(
            [combine([d], [1.0], method="dare_linear", density=density, generator=torch.Generator()) for d in deltas],
            WEIGHTS, method="ties", density=1.0, majority_sign_method=sign_method,
        )  # fmt: skip
        torch.testing.assert_close(residual(found), ties_of(kept, WEIGHTS, sign_method), rtol=1e-14, atol=0)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_draws_again_with_the_same_seed_and_differently_with_another(method: str) -> None:
    deltas = deltas_of(tasks())
    first, again, other = (
        combine(deltas, WEIGHTS, method=method, density=0.5, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_dare_elects_signs_and_linear_dare_does_not() -> None:
    dense = [torch.tensor([[4.0, 1.0]]), torch.tensor([[-2.0, 1.0]])]
    linear, elected = (
        residual(combine(deltas_of(dense), [1.0, 1.0], method=method, density=1.0))
        for method in ("dare_linear", "dare_ties")
    )
    assert linear.tolist() == [[2.0, 2.0]]
    assert elected.tolist() == [[4.0, 1.0]]


def test_dare_keeps_the_expected_change() -> None:
    base = {"w": torch.zeros(20_000)}
    delta = export(base, {"w": torch.ones(20_000)})
    found = combine([delta], [1.0], method="dare_linear", density=0.25, generator=torch.Generator().manual_seed(0))
    assert found["w"].values.unique().tolist() == [4.0]
    assert abs(found["w"].to_coo().to_dense().mean().item() - 1.0) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_dtypes_are_rounded_once(dtype: torch.dtype) -> None:
    dense = tasks(dtype=dtype)
    in_float32 = sum(weight * task.float() for weight, task in zip(WEIGHTS, dense, strict=True))
    assert torch.equal(residual(combine(deltas_of(dense), WEIGHTS)), in_float32.to(dtype))
    ours = combine(deltas_of(dense), WEIGHTS, method="dare_linear", density=0.7, generator=torch.Generator())
    wanted = sum(weight * (task.float() / 0.7) for weight, task in zip(WEIGHTS, dense, strict=True)).to(dtype)
    alone = residual(ours).ne(0) & (torch.stack(dense).ne(0).sum(0) == 1)
    assert alone.any()
    assert torch.equal(residual(ours)[alone], wanted[alone])


def test_parameters_of_one_task_only_ties_and_buffers_survive_and_the_result_merges(tmp_path: Path) -> None:
    embedding = torch.randn(4, 3)
    base = {"a": torch.zeros(3), "b": torch.ones(2), "embed": embedding, "out": embedding}
    base["n.num_batches_tracked"] = torch.tensor(1)
    moved, count = embedding + 1, torch.tensor(9)
    first = {**base, "a": torch.tensor([1.0, 0, 2]), "n.num_batches_tracked": count}
    second = {**base, "b": torch.tensor([1.0, 3]), "embed": moved, "out": moved, "n.num_batches_tracked": count}
    paths = []
    for name, tuned in (("first", first), ("second", second)):
        paths.append(tmp_path / f"{name}.safetensors")
        export(base, tuned).save(paths[-1])
    both = combine(paths, [2.0, 0.5], method="magnitude_prune", density=1.0)
    both.save(tmp_path / "both.safetensors")
    both = SparseDelta.load(tmp_path / "both.safetensors")
    merged = merge(base, both)
    assert merged["a"].tolist() == [2, 0, 4]
    assert merged["b"].tolist() == [1, 2]
    assert merged["out"] is merged["embed"]
    torch.testing.assert_close(merged["embed"], embedding + 0.5)
    assert both.buffers == {"n.num_batches_tracked"}
    assert merged["n.num_batches_tracked"] == 9
    assert both.config == {"combined": {"method": "magnitude_prune", "weights": [2.0, 0.5], "density": 1.0}}
    assert both.base.weights == export(base, first).base.weights


def test_what_cancels_is_gone() -> None:
    delta = deltas_of(tasks())[0]
    assert len(combine([delta, delta], [1.0, -1.0])) == 0


def test_other_bases_are_refused_by_name(tmp_path: Path) -> None:
    tuned = {"w": torch.ones(3)}
    for name, value in (("one", 0.0), ("two", 0.5)):
        torch.save({"w": torch.full((3,), value)}, tmp_path / f"{name}.pt")
        export(tmp_path / f"{name}.pt", tuned).save(tmp_path / f"{name}.safetensors")
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    with refused(WrongBaseError, *paths, "base one.pt", "base two.pt", parameter="w"):
        combine(paths, [1, 1])
    unknown = SparseDelta.load(paths[1]) * 1.0
    assert combine([paths[0], unknown], [1, 1])["w"].values.tolist() == [1.5] * 3
    with refused(ParameterMismatchError, "delta 1", "(3,)", "delta 2", "(4,)", parameter="w"):
        combine([unknown, export({"w": torch.zeros(4)}, {"w": torch.ones(4)})], [1, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_the_base_the_result_is_exact_and_knows_it(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(500, generator=draw).to(dtype), "v": torch.ones(2, dtype=dtype)}
    moved = [{**base, "w": base["w"] + torch.randn(500, generator=draw).to(dtype) * 1e-3} for _ in range(2)]
    deltas = [export(base, tuned) for tuned in moved]
    plain, bound = combine(deltas, [0.3, 0.4]), combine(deltas, [0.3, 0.4], base=base)
    assert torch.equal(merge(base, plain)["w"], merge(base, bound)["w"])
    assert bound == export(base, merge(base, plain))
    other = {**base, "w": base["w"] * 2}
    assert merge(other, plain)  # nobody notices
    with refused(WrongBaseError, file="state dict", parameter="w"):
        merge(other, bound)
    with refused(WrongBaseError, file="state dict", parameter="w"):
        combine(deltas, [0.3, 0.4], base=other)
    with refused(ParameterMismatchError, file="state dict", parameter="w"):
        combine(deltas, [0.3, 0.4], base={"v": base["v"]})


def test_ties_of_one_delta_alone_are_refused() -> None:
    shared = torch.zeros(3)
    base = {"embed": shared, "out": shared}
    tuned = torch.ones(3)
    tied, untied = export(base, {"embed": tuned, "out": tuned}), export(base, {"embed": tuned, "out": tuned + 1})
    assert combine([tied, tied], [0.5, 0.5]).tied == {"out": "embed"}
    with refused(ParameterMismatchError, "delta 2", "delta 1", "embed", parameter="out"):
        combine([tied, untied], [0.5, 0.5])


def test_heads_that_differ_are_refused_and_can_be_left_out() -> None:
    base = {"w": torch.zeros(2)}
    one, two, none = (
        export(base, {"w": torch.ones(2), **head}) for head in ({"head": torch.ones(2)}, {"head": torch.zeros(2)}, {})
    )
    assert combine([one, one], [0.5, 0.5]).dense["head"].tolist() == [1, 1]
    with refused(ParameterMismatchError, "delta 1", "delta 2", parameter="head"):
        combine([one, two], [0.5, 0.5])
    with refused(ParameterMismatchError, "delta 1", "delta 2", parameter="head"):
        combine([none, two], [0.5, 0.5])
    assert combine([one.sparse_only(), two.sparse_only()], [0.5, 0.5])["w"].values.tolist() == [1, 1]


def test_a_delta_with_a_head_and_one_with_its_residual_do_not_mix() -> None:
    base = {"head": torch.zeros(2)}
    whole = export(base, {"head": torch.ones(2)}, modules_to_save=["head"])
    sparse = export(base, {"head": torch.ones(2)})
    with refused(ParameterMismatchError, parameter="head"):
        combine([whole, sparse], [1, 1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"weights": [1.0]}, "2 deltas and 1 weights"),
        ({"weights": [1.0, float("nan")]}, "nan"),
        ({"method": "slerp"}, "method='slerp'"),
        ({"majority_sign_method": "loudest"}, "majority_sign_method='loudest'"),
        ({"density": 0.5}, "density=0.5"),
        ({"method": "ties"}, "density=None"),
        ({"method": "ties", "density": 0.0}, "density=0.0"),
        ({"method": "dare_ties", "density": 1.5}, "density=1.5"),
    ],
)
def test_settings_out_of_range(words: dict[str, object], message: str) -> None:
    settings = {"weights": [1.0, 1.0], **words}
    with refused(ConfigError, message):
        combine(deltas_of(tasks(count=2)), **settings)  # type: ignore[arg-type]
    with refused(ConfigError, 0):
        combine([], [])


def test_only_residuals_combine_and_only_finite_ones_result() -> None:
    base, tuned = {"w": torch.zeros(4)}, {"w": torch.ones(4)}
    steps = export(base, tuned, op="step")
    with refused(ParameterMismatchError, "step"):
        combine([steps, steps], [1, 1])
    assert combine([convert(steps, op="add", base=base)], [2.0])["w"].values.tolist() == [2.0] * 4
    large = export({"w": torch.zeros(1).half()}, {"w": torch.full((1,), 6e4).half()})
    with refused(NonFiniteError, "torch.float16", parameter="w"):
        combine([large, large], [1, 1])


def test_an_overlay_gives_way_to_the_nearest_residual() -> None:
    base, tuned = {"w": torch.tensor([1e8, 1.0])}, {"w": torch.tensor([1e-8, 2.0])}
    delta = export(base, tuned)
    assert delta["w"].exact_indices.tolist() == [0]
    combined = combine([delta], [1.0])
    assert combined["w"].exact_indices.tolist() == []
    assert combined["w"].values.tolist() == [-1e8, 1.0]
    assert merge(base, replace(combined))["w"].tolist() == [0.0, 2.0]
