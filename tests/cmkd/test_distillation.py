"""The classic distillation term against a loop and against autograd."""

import math

import pytest
import torch

from cmkd import kl_distillation
from tests.messages import names


def views(seed: int = 0):
    torch.manual_seed(seed)
    student = (2 * torch.randn(5, 4, dtype=torch.float64)).requires_grad_()
    teacher = (2 * torch.randn(5, 4, dtype=torch.float64)).requires_grad_()
    return student, teacher


def test_matches_the_loop():
    student, teacher = views()
    weights = [0.1, 0.9, 0.5, 0.0, 1.0]
    p_h, p_g = student.softmax(1).tolist(), teacher.softmax(1).tolist()
    per_sample = [
        sum(g * math.log(g / h) for g, h in zip(gs, hs, strict=True)) for gs, hs in zip(p_g, p_h, strict=True)
    ]
    log_views = student.log_softmax(1), teacher.log_softmax(1)
    assert kl_distillation(*log_views).item() == pytest.approx(sum(per_sample) / 5, rel=1e-12)
    weighted = sum(c * kl for c, kl in zip(weights, per_sample, strict=True)) / 5
    assert kl_distillation(*log_views, torch.tensor(weights)).item() == pytest.approx(weighted, rel=1e-6)


def test_pulls_the_student_to_the_teacher_which_stands_still():
    student, teacher = views()
    kl_distillation(student.log_softmax(1), teacher.log_softmax(1)).backward()
    torch.testing.assert_close(student.grad, (student.softmax(1) - teacher.softmax(1)).detach() / 5)
    assert teacher.grad is None


def test_is_zero_for_equal_views_and_finite_for_certain_ones():
    student, _ = views()
    assert kl_distillation(student.log_softmax(1), student.log_softmax(1)).item() == pytest.approx(0, abs=1e-15)
    certain = torch.tensor([[1e4, -1e4]]).log_softmax(1)
    assert kl_distillation(certain, certain.flip(1)).item() == pytest.approx(2e4)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=names("log_teacher", (2, 3), (2, 4))):
        kl_distillation(torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=names("weights", (2,), (2, 1))):
        kl_distillation(torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(2, 1))
