"""Eq. 8 and its gradient."""

import pytest
import torch

from cmkd import mix_views
from tests.messages import names


def test_is_the_average_and_the_teacher_gets_no_gradient():
    student = torch.tensor([[0.2, 0.8], [1.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.6, 0.4], [0.0, 1.0]], requires_grad=True)
    mixed = mix_views(student, teacher)
    torch.testing.assert_close(mixed, torch.tensor([[0.4, 0.6], [0.5, 0.5]]))
    mixed.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad == 0.5).all()


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=names("teacher", (1, 3), (2, 3))):
        mix_views(torch.ones(2, 3), torch.ones(1, 3))
