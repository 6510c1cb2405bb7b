"""FixMatch against a loop, who learns from whom, and partial class sets."""

import math

import pytest
import torch

from cmkd import FixMatch, pseudo_label_loss
from tests.messages import names

BATCH, CLASSES = 16, 4


def logits(seed: int):
    torch.manual_seed(seed)
    return (3 * torch.randn(BATCH, CLASSES, dtype=torch.float64)).requires_grad_()


def loop(weak, strong, threshold, classes=(0, 1, 2, 3)):
    total = 0.0
    for weak_row, strong_row in zip(weak.softmax(1).tolist(), strong.softmax(1).tolist(), strict=True):
        allowed = [p if i in classes else 0.0 for i, p in enumerate(weak_row)]
        confidence = max(allowed)
        if confidence >= threshold:
            total -= math.log(strong_row[allowed.index(confidence)])
    return total / BATCH


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.9, 1.0])
def test_matches_the_loop(threshold):
    weak, strong = logits(0), logits(1)
    assert pseudo_label_loss(weak, strong, threshold).item() == pytest.approx(loop(weak, strong, threshold), rel=1e-12)


def test_the_threshold_itself_counts():
    weak = torch.tensor([[0.0, 0.0]])
    assert pseudo_label_loss(weak, torch.tensor([[2.0, 0.0]]), 0.5).item() > 0
    assert pseudo_label_loss(weak, torch.tensor([[2.0, 0.0]]), 0.51).item() == 0


def test_dropped_classes_are_no_labels_and_nothing_is_renormalised():
    weak, strong = logits(0), logits(1)
    classes = torch.tensor([False, True, False, True])
    got = pseudo_label_loss(weak, strong, 0.6, classes).item()
    assert got == pytest.approx(loop(weak, strong, 0.6, classes=(1, 3)), rel=1e-12)
    assert got < loop(weak, strong, 0.6)


def test_both_views_with_their_factor():
    weak, strong, teacher_weak, teacher_strong = (logits(seed) for seed in range(4))
    terms = FixMatch(weight=2.0, threshold=0.7)(
        student_weak=weak, student_strong=strong, teacher_weak=teacher_weak, teacher_strong=teacher_strong
    )
    student, teacher = 2 * loop(weak, strong, 0.7), 2 * loop(teacher_weak, teacher_strong, 0.7)
    assert [term.item() for term in terms] == pytest.approx([student + teacher, student, teacher], rel=1e-12)


def test_the_defaults_are_appendix_b_s():
    assert (FixMatch().weight, FixMatch().threshold) == (0.5, 0.95)


def test_only_strong_views_learn():
    inputs = {name: logits(seed) for seed, name in enumerate(("student_weak", "student_strong"))}
    inputs |= {name: logits(seed) for seed, name in enumerate(("teacher_weak", "teacher_strong"), start=2)}
    FixMatch(threshold=0.5)(**inputs).total.backward()
    assert inputs["student_weak"].grad is None
    assert inputs["teacher_weak"].grad is None
    assert inputs["student_strong"].grad.abs().sum() > 0
    assert inputs["teacher_strong"].grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saturated_logits_of_any_dtype(dtype):
    weak, strong = (1e4 * logits(seed).detach().sign().to(dtype) for seed in (0, 1))
    strong.requires_grad_()
    loss = pseudo_label_loss(weak, strong, 0.95)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert strong.grad.isfinite().all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=names((2, 3), (2, 4))):
        pseudo_label_loss(torch.zeros(2, 3), torch.zeros(2, 4), 0.9)
    with pytest.raises(ValueError, match=names("classes", (3,), torch.int64)):
        pseudo_label_loss(torch.zeros(2, 3), torch.zeros(2, 3), 0.9, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=names("threshold", 95)):
        FixMatch(threshold=95)


def test_a_nan_in_the_weak_view_is_not_taken_for_an_unsure_image():
    weak = logits(seed=0).detach()
    weak[3, 1] = math.nan
    assert pseudo_label_loss(weak, logits(seed=1), 0.95).isnan()


def test_an_empty_batch_is_named():
    with pytest.raises(ValueError, match=names((0, CLASSES))):
        pseudo_label_loss(torch.empty(0, CLASSES), torch.empty(0, CLASSES), 0.95)
