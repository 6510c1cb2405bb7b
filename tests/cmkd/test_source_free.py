"""CMKD without a source: the target's terms, a frozen teacher, and no look at the source's images."""

import copy

import pytest
import torch
from torch import nn

from cmkd import CMKDLoss, DomainBatch, SourceFreeCMKD, Student

CLASSES, DIM = 4, 6


def student() -> Student:
    torch.manual_seed(0)
    return Student(nn.Sequential(nn.Flatten(), nn.Linear(12, DIM)), nn.Linear(DIM, CLASSES)).double()


def batch() -> DomainBatch:
    target = torch.randn(7, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return DomainBatch(target[:0], torch.empty(0, dtype=torch.int64), target, torch.arange(7))


def frozen_head(model: Student) -> nn.Module:
    head = copy.deepcopy(model.head).requires_grad_(False)
    with torch.no_grad():
        head.weight.mul_(3)  # a view of its own
    return head


def test_the_total_is_the_losss_target_terms():
    model = student()
    teacher, loss = frozen_head(model), CMKDLoss("corrected", max_iterations=10, terms=("task", "distill"))
    (phase,) = SourceFreeCMKD(teacher, loss).phases(model, batch(), iteration=5, max_iterations=10)
    features = model.encoder(batch().target_images)
    terms = loss(student_logits=model.head(features), teacher_logits=teacher(features), iteration=5)
    assert phase.total == terms.total
    assert (phase.terms["task"], phase.terms["distill"]) == (terms.task, terms.distill)
    assert phase.total > 0
    phase.total.backward()
    assert model.head.weight.grad.abs().sum() > 0
    assert model.encoder[1].weight.grad.abs().sum() > 0
    assert phase.trains == ("encoder", "head")


def test_a_loss_with_the_regulariser_and_a_trainable_teacher_are_refused():
    with pytest.raises(ValueError, match="regularization"):
        SourceFreeCMKD(nn.Identity(), CMKDLoss())
    with pytest.raises(ValueError, match=r"weight \(4, 6\)"):
        SourceFreeCMKD(nn.Linear(DIM, CLASSES))


@pytest.mark.parametrize("given", ["source_teacher_logits", "source_labels", None])
def test_the_regulariser_asks_for_the_source(given):
    sources = {"source_teacher_logits": torch.randn(3, CLASSES), "source_labels": torch.tensor([0, 1, 2])}
    sources = {name: value for name, value in sources.items() if name == given}
    missing = "source_labels" if given == "source_teacher_logits" else "source_teacher_logits"
    logits = torch.randn(5, CLASSES)
    with pytest.raises(ValueError, match=missing):
        CMKDLoss()(student_logits=logits, teacher_logits=logits, iteration=0, **sources)
