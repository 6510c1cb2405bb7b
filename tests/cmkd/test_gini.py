"""Both scales of the Gini impurity against loops written from the formulas."""

import pytest
import torch
from torch import Tensor

from cmkd import gini_balanced, gini_mean
from tests.messages import names


def views(batch: int = 5, classes: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.softmax(2 * torch.randn(batch, classes, dtype=dtype), dim=1)


def loop_mean(p: Tensor, weights: list[float]) -> float:
    total = 0.0
    for row, weight in zip(p.tolist(), weights, strict=True):
        total += weight * (1 - sum(x * x for x in row))
    return total / len(weights)


def loop_balanced(p: Tensor, weights: list[float]) -> float:
    rows = p.tolist()
    mass = [sum(row[i] for row in rows) for i in range(len(rows[0]))]
    total = 0.0
    for row, weight in zip(rows, weights, strict=True):
        total += weight * (1 - sum(x * x / m for x, m in zip(row, mass, strict=True)))
    return total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("gini", "loop"), [(gini_mean, loop_mean), (gini_balanced, loop_balanced)])
def test_matches_the_loop(gini, loop, dtype):
    p = views(dtype=dtype)
    weights = torch.tensor([0.1, 0.9, 0.5, 0.0, 1.0], dtype=dtype)
    assert gini(p).dtype == dtype
    assert gini(p).item() == pytest.approx(loop(p, [1.0] * 5), rel=1e-5)
    assert gini(p, weights).item() == pytest.approx(loop(p, weights.tolist()), rel=1e-5)


def test_mean_is_zero_for_certain_views_and_largest_for_uniform_ones():
    assert gini_mean(torch.eye(3)).item() == 0
    assert gini_mean(torch.full((7, 4), 0.25)).item() == 0.75


def test_no_gradient_flows_through_the_class_mass():
    p = views().requires_grad_()
    weights = torch.tensor([0.1, 0.9, 0.5, 0.0, 1.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(gini_balanced(p, weights), p)
    by_hand = -2 * weights[:, None] * p.detach() / p.detach().sum(dim=0)
    torch.testing.assert_close(gradient, by_hand)


def test_balanced_gradient_is_about_classes_times_the_mean_one_when_masses_are_even():
    p = (torch.full((30, 10), 0.1, dtype=torch.float64) + 0.01 * views(30, 10)).requires_grad_()
    (balanced,) = torch.autograd.grad(gini_balanced(p), p)
    (mean,) = torch.autograd.grad(gini_mean(p), p)
    assert (balanced.norm() / mean.norm()).item() == pytest.approx(10, rel=0.01)


def test_a_class_that_nobody_predicts_gives_no_nan():
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    value = gini_balanced(p)
    value.backward()
    assert value.item() == 1.0
    assert p.grad is not None
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("gini", [gini_mean, gini_balanced])
def test_bad_shapes_are_named(gini):
    with pytest.raises(ValueError, match=names("probabilities", (3,))):
        gini(torch.ones(3))
    with pytest.raises(ValueError, match=names("probabilities", (0, 4))):
        gini(torch.ones(0, 4))
    with pytest.raises(ValueError, match=names("weights", (2,), (3, 1))):
        gini(torch.ones(2, 4), torch.ones(3, 1))
