"""The baseline is smoothed cross entropy on the source, and nothing else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cmkd import DomainBatch, SourceOnly, Student


@pytest.mark.parametrize("smoothing", [0.1, 0.0])
def test_is_cross_entropy_on_the_source(smoothing):
    student = Student(nn.Flatten(), nn.Linear(12, 3))
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    batch = DomainBatch(images, labels, torch.full((4, 3, 2, 2), torch.nan), torch.arange(4))
    objective = SourceOnly(smoothing)
    (phase,) = objective.phases(student, batch, iteration=0, max_iterations=1)
    log_p = student(images).log_softmax(1)
    smooth = torch.full((4, 3), smoothing / 3) + (1 - smoothing) * F.one_hot(labels, 3)
    torch.testing.assert_close(phase.total, -(smooth * log_p).sum(1).mean())
    assert list(phase.terms) == ["classification"]
    assert not objective.needs_strong_images
    assert not objective.needs_target_pass


def test_the_default_smoothing_is_the_paper_s():
    assert SourceOnly().label_smoothing == 0.1


def test_a_partial_set_halves_the_loss_not_the_term():
    student = Student(nn.Flatten(), nn.Linear(12, 3))
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    batch = DomainBatch(images, labels, images, torch.arange(4))
    (whole,), (half,) = (
        SourceOnly(weight=weight).phases(student, batch, iteration=0, max_iterations=1) for weight in (1.0, 0.5)
    )
    assert half.total == 0.5 * whole.total
    assert half.terms["classification"] == whole.terms["classification"]
