"""Each trade-off of Eq. 11 and Table X against a loop; direction, range and detachment."""

import math

import pytest
import torch
from torch import Tensor

from cmkd import constant_alpha, entropy_alpha, kl_alpha
from tests.messages import names


def log_views(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(seed)
    return torch.log_softmax(2 * torch.randn(6, 4, dtype=dtype), dim=1)


def loop_kl_alpha(log_p: Tensor, log_q: Tensor) -> list[float]:
    alphas = []
    for p_row, q_row in zip(log_p.exp().tolist(), log_q.exp().tolist(), strict=True):
        alphas.append(math.exp(-sum(p * math.log(p / q) for p, q in zip(p_row, q_row, strict=True))))
    return alphas


def loop_entropy_alpha(log_p: Tensor, epsilon: float) -> list[float]:
    return [math.exp(sum(p * math.log(p + epsilon) for p in row)) for row in log_p.exp().tolist()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kl_alpha_matches_the_loop_in_both_directions(dtype):
    student, teacher = log_views(0, dtype), log_views(1, dtype)
    for p, q in [(student, teacher), (teacher, student)]:
        alpha = kl_alpha(p, q)
        assert alpha.dtype == dtype
        assert alpha.tolist() == pytest.approx(loop_kl_alpha(p, q), rel=1e-5)
    assert not torch.allclose(kl_alpha(student, teacher), kl_alpha(teacher, student))


def test_the_second_direction_is_torch_kl_div_as_the_released_code_calls_it():
    student, teacher = log_views(0), log_views(1)
    kl_div = torch.nn.functional.kl_div(student, teacher.exp(), reduction="none").sum(dim=1)
    torch.testing.assert_close(kl_alpha(teacher, student), torch.exp(-kl_div))


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.1])
def test_entropy_alpha_matches_the_loop(epsilon):
    student = log_views(2)
    assert entropy_alpha(student, epsilon).tolist() == pytest.approx(loop_entropy_alpha(student, epsilon))


def test_constant_alpha_is_half_a_sample():
    assert constant_alpha(log_views(0)).tolist() == [0.5] * 6


def test_views_that_agree_or_are_certain_have_alpha_one_and_never_more():
    student = log_views(0, torch.float32)
    assert (kl_alpha(student, student) == 1).all()
    one_ulp_off = torch.nextafter(student, torch.zeros(()))  # rounds to a divergence just below 0
    assert (kl_alpha(student, one_ulp_off) <= 1).all()
    certain = torch.log_softmax(torch.tensor([[1e4, -1e4]]), dim=1)
    assert entropy_alpha(certain).tolist() == [1.0]


def test_saturated_views_give_zero_or_one_and_no_nan():
    left = torch.log_softmax(torch.tensor([[1e4, -1e4, 0.0]]), dim=1)
    right = torch.log_softmax(torch.tensor([[-1e4, 1e4, 0.0]]), dim=1)
    assert kl_alpha(left, right).tolist() == [0.0]
    assert kl_alpha(left, left).tolist() == [1.0]
    assert entropy_alpha(left, 1e-5).tolist() == pytest.approx([1.0], abs=2e-5)


def test_alphas_are_detached():
    student = log_views(0).requires_grad_()
    teacher = log_views(1).requires_grad_()
    for alpha in (kl_alpha(student, teacher), entropy_alpha(student), constant_alpha(student)):
        assert not alpha.requires_grad


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=names("log_q", (1, 3), (2, 3))):
        kl_alpha(torch.zeros(2, 3), torch.zeros(1, 3))
