"""MinEnt, BNM, MCC and SHOT's information maximisation against loops in float64."""

import math

import pytest
import torch
from torch import Tensor

from cmkd.baselines import (
    BNM,
    MCC,
    class_confusion_loss,
    entropy_loss,
    fast_nuclear_norm_loss,
    information_maximisation_loss,
    nuclear_norm_loss,
)
from tests.messages import names

LOSSES = [entropy_loss, nuclear_norm_loss, fast_nuclear_norm_loss, class_confusion_loss, information_maximisation_loss]


def logits(batch: int = 6, classes: int = 5, seed: int = 0) -> Tensor:
    return 2 * torch.randn(batch, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax_row(row: list[float]) -> list[float]:
    exps = [math.exp(x) for x in row]
    return [x / sum(exps) for x in exps]


def entropy(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p)


def loop_confusion(rows: list[list[float]], temperature: float) -> float:
    views = [softmax_row([x / temperature for x in row]) for row in rows]
    raw = [1 + math.exp(-entropy(p)) for p in views]
    weights = [len(rows) * w / sum(raw) for w in raw]
    classes = range(len(rows[0]))
    matrix = [[sum(w * p[i] * p[j] for w, p in zip(weights, views, strict=True)) for j in classes] for i in classes]
    return sum(matrix[i][j] / sum(matrix[i]) for i in classes for j in classes if i != j) / len(classes)


def test_entropy_is_the_loop_s():
    x = logits()
    expected = sum(entropy(softmax_row(row)) for row in x.tolist()) / len(x)
    assert entropy_loss(x).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 5), (3, 7), (1, 4), (36, 12)])
def test_nuclear_norm_is_the_mean_of_the_roots_of_the_gram_matrix(shape):
    x = logits(*shape)
    p = x.softmax(dim=1)
    eigenvalues = torch.linalg.eigvalsh(p @ p.T)
    expected = -eigenvalues.clamp(min=0).sqrt().sum() / min(shape)
    torch.testing.assert_close(nuclear_norm_loss(x), expected, rtol=1e-6, atol=1e-8)


def test_nuclear_norm_prefers_certain_and_diverse():
    certain = 100 * torch.eye(4, dtype=torch.float64)
    assert nuclear_norm_loss(certain).item() == pytest.approx(-1.0)
    collapsed = certain[:1].expand(4, 4)
    assert nuclear_norm_loss(collapsed).item() == pytest.approx(-0.5)


@pytest.mark.parametrize("shape", [(6, 5), (3, 7)])
def test_fast_bnm_sums_the_longest_columns(shape):
    x = logits(*shape)
    p = x.softmax(dim=1)
    lengths = sorted((math.sqrt(sum(float(value) ** 2 for value in column)) for column in p.T), reverse=True)
    expected = -sum(lengths[: min(shape)]) / min(shape)
    assert fast_nuclear_norm_loss(x).item() == pytest.approx(expected, rel=1e-12)


def test_fast_bnm_is_bnm_where_predictions_are_certain():
    certain = 100 * torch.eye(4, dtype=torch.float64)[torch.tensor([0, 0, 1, 2, 2, 2, 3])]
    assert fast_nuclear_norm_loss(certain).item() == pytest.approx(nuclear_norm_loss(certain).item())


def test_bnm_takes_the_fast_loss_on_request():
    x = logits()
    assert BNM(fast=True).target_loss(x) == fast_nuclear_norm_loss(x)
    assert BNM().target_loss(x) == nuclear_norm_loss(x) != fast_nuclear_norm_loss(x)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_class_confusion_is_the_loop_s(temperature):
    x = logits()
    expected = loop_confusion(x.tolist(), temperature)
    assert class_confusion_loss(x, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_class_confusion_s_published_temperature_is_the_default():
    assert class_confusion_loss(logits()) == class_confusion_loss(logits(), 2.5)
    assert MCC().temperature == 2.5
    with pytest.raises(ValueError, match=names("temperature", 0)):
        MCC(temperature=0)


def test_no_gradient_flows_through_the_weights_of_class_confusion():
    x = logits().requires_grad_()
    (gradient,) = torch.autograd.grad(class_confusion_loss(x), x)
    p = (x.detach() / 2.5).softmax(dim=1)
    weights = 1 + (p * p.log()).sum(dim=1).exp()
    weights = weights * len(p) / weights.sum()
    y = x.detach().requires_grad_()
    q = (y / 2.5).softmax(dim=1)
    correlation = q.T @ (weights[:, None] * q)
    normalised = correlation / correlation.sum(dim=1, keepdim=True)
    (expected,) = torch.autograd.grad((normalised.sum() - normalised.trace()) / 5, y)
    torch.testing.assert_close(gradient, expected)


def test_information_maximisation_is_the_loop_s():
    x = logits()
    views = [softmax_row(row) for row in x.tolist()]
    mean = [sum(column) / len(views) for column in zip(*views, strict=True)]
    expected = sum(map(entropy, views)) / len(views) - entropy(mean)
    assert information_maximisation_loss(x).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_saturated_logits_give_no_nan(loss, dtype):
    x = (1e4 * logits()).to(dtype).requires_grad_()
    value = loss(x)
    value.backward()
    assert value.isfinite()
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_class_ruled_out_by_all_gives_no_nan(loss):
    x = logits().float()
    x[:, 2] = -1e4
    x.requires_grad_()
    loss(x).backward()
    assert x.grad.isfinite().all()
