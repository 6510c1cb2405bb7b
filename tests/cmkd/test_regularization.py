"""The regulariser against its formula, in value and gradient."""

import pytest
import torch

from cmkd import gini_balanced, gini_mean, teacher_regularization


@pytest.mark.parametrize("gini", [gini_mean, gini_balanced])
def test_is_eq_13_and_reaches_both_domains(gini):
    torch.manual_seed(0)
    source = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 1])
    got = teacher_regularization(source.log_softmax(1), labels, target.softmax(1), gini=gini, lambda2=0.3, lambda3=0.7)
    p = target.softmax(1)
    mass = p.sum(0).detach()
    impurity = (1 - (p**2).sum(1)).mean() if gini is gini_mean else (1 - (p**2 / mass).sum(1)).sum()
    # KL(y || p) with one-hot y is -log p_y.
    kl = -torch.stack([source.softmax(1)[row, label].log() for row, label in enumerate(labels)]).mean()
    want = 0.3 * kl + 0.7 * impurity
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, (source, target)), torch.autograd.grad(want, (source, target)), strict=True
    ):
        torch.testing.assert_close(a, b)
        assert a.abs().sum() > 0
