"""LMMD against the formula in loops, kernel by kernel and class by class."""

import math

import pytest
import torch

from cmkd.baselines import DSAN, gaussian_kernels, lmmd_loss
from tests.cmkd.baselines.problem import Problem, mlp_student


def batch(source=5, target=7, classes=4, dim=3, seed=0):
    torch.manual_seed(seed)
    return (
        torch.randn(source, dim, dtype=torch.float64),
        torch.randn(target, dim, dtype=torch.float64) + 0.5,
        torch.randint(classes, (source,)),
        torch.randn(target, classes, dtype=torch.float64).softmax(dim=1),
    )


def loop_kernel(rows, multiple=2.0, kernels=5):
    n = len(rows)
    squared = [[sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
    middle = sum(map(sum, squared)) / (n * n - n)
    return [
        [sum(math.exp(-d / (middle * multiple ** (k - kernels // 2))) for k in range(kernels)) for d in row]
        for row in squared
    ]


def loop_lmmd(source_features, target_features, labels, probabilities):
    kernel = loop_kernel(source_features + target_features)
    s, t, classes = len(source_features), len(target_features), len(probabilities[0])
    argmax = {row.index(max(row)) for row in probabilities}
    common = [c for c in range(classes) if c in labels and c in argmax]
    total = 0.0
    for c in common:
        ws = [(label == c) / labels.count(c) for label in labels]
        mass = sum(row[c] for row in probabilities)
        wt = [row[c] / mass for row in probabilities]
        total += sum(ws[i] * ws[j] * kernel[i][j] for i in range(s) for j in range(s))
        total += sum(wt[i] * wt[j] * kernel[s + i][s + j] for i in range(t) for j in range(t))
        total -= 2 * sum(ws[i] * wt[j] * kernel[i][s + j] for i in range(s) for j in range(t))
    return total / len(common) if common else 0.0


def test_kernels_are_the_loop_s():
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(gaussian_kernels(x), torch.tensor(loop_kernel(x.tolist()), dtype=torch.float64))


def test_the_features_scale_is_neither_rewarded_nor_punished():
    source, target, labels, probabilities = batch()
    loss = lmmd_loss(source, target, labels, probabilities)
    assert lmmd_loss(7 * source, 7 * target, labels, probabilities).item() == pytest.approx(loss.item(), rel=1e-12)
    features = torch.cat([source, target]).requires_grad_()
    (gradient,) = torch.autograd.grad(lmmd_loss(*features.split([5, 7]), labels, probabilities), features)
    assert abs((gradient * features).sum().item()) < 1e-12 * gradient.norm().item() * features.norm().item() + 1e-15


def test_the_gradient_is_right_through_the_bandwidth_too():
    source, target, labels, probabilities = batch()
    assert torch.autograd.gradcheck(
        lambda x, y: lmmd_loss(x, y, labels, probabilities), (source.requires_grad_(), target.requires_grad_())
    )


@pytest.mark.parametrize("seed", range(4))
def test_lmmd_is_the_loop_s(seed):
    arguments = batch(seed=seed)
    expected = loop_lmmd(*(x.tolist() for x in arguments))
    assert expected > 0
    assert lmmd_loss(*arguments).item() == pytest.approx(expected, rel=1e-10)


def test_no_common_class_gives_zero_that_can_be_differentiated():
    source, target, _, _ = batch()
    source.requires_grad_()
    probabilities = torch.eye(4, dtype=torch.float64)[[1] * 7]
    loss = lmmd_loss(source, target, torch.zeros(5, dtype=torch.int64), probabilities)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(source.grad, torch.zeros_like(source))


def test_equal_features_give_no_nan():
    x = torch.zeros(4, 3, requires_grad=True)
    loss = lmmd_loss(x, x, torch.tensor([0, 1, 0, 1]), torch.eye(2)[[0, 1, 0, 1]])
    loss.backward()
    assert loss.item() == pytest.approx(0)
    assert x.grad.isfinite().all()


def test_descending_on_it_brings_the_classes_together():
    source, target, labels, probabilities = batch()
    before = lmmd_loss(source, target, labels, probabilities).item()
    for _ in range(20):
        target.requires_grad_()
        (gradient,) = torch.autograd.grad(lmmd_loss(source, target, labels, probabilities), target)
        target = (target - 0.5 * gradient).detach()
    assert lmmd_loss(source, target, labels, probabilities).item() < 0.8 * before


def test_the_weight_follows_the_ramp():
    student, problem = mlp_student(), Problem()
    batch = problem.batch()
    for iteration, share in ((0, 0.0), (20, 2 / (1 + math.exp(-2)) - 1)):
        (phase,) = DSAN().phases(student, batch, iteration=iteration, max_iterations=100)
        expected = phase.terms["classification"] + 0.5 * share * phase.terms["lmmd"]
        torch.testing.assert_close(phase.total, expected)
