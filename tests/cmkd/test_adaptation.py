"""CMKD as a method: what one step adds up, who is trained, and what it asks of the loop."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cmkd import (
    CMKD,
    PRESETS,
    CMKDLoss,
    DomainBatch,
    FixMatch,
    PartialSet,
    PrototypeTeacher,
    SourceOnly,
    Student,
    TargetBatch,
    TaskHead,
    TextTeacher,
    pseudo_label_loss,
)
from tests.messages import names

CLASSES, DIM = 4, 6


class CountingEncoder(nn.Module):
    """Flattens and maps images, and remembers how many came at each call."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(12, DIM)
        self.calls = []

    def forward(self, images):
        self.calls.append(len(images))
        return self.map(images.flatten(1))


def student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    head = TaskHead(DIM, CLASSES)
    nn.init.normal_(head.linear.weight)  # views that differ
    return Student(CountingEncoder(), head).double()


def teacher() -> TextTeacher:
    return TextTeacher(torch.randn(CLASSES, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(5)), 8.0)


def batch(strong: bool = False) -> DomainBatch:
    generator = torch.Generator().manual_seed(1)
    source, target, target_strong = (
        torch.randn(n, 3, 2, 2, dtype=torch.float64, generator=generator) for n in (5, 7, 7)
    )
    labels = torch.tensor([0, 1, 2, 3, 0])
    return DomainBatch(source, labels, target, torch.arange(7), target_strong if strong else None)


def only_phase(objective, model, data, iteration=50):
    (phase,) = objective.phases(model, data, iteration=iteration, max_iterations=100)
    return phase


@pytest.mark.parametrize("preset", PRESETS)
def test_the_total_is_eq_1(preset):
    model, data, text = student(), batch(), teacher()
    loss = CMKDLoss(preset, max_iterations=100)
    phase = only_phase(CMKD(text, loss), model, data)

    source, target = model.encoder(data.source_images), model.encoder(data.target_images)
    cross_entropy = F.cross_entropy(model.head(source), data.source_labels, label_smoothing=0.1)
    terms = loss(
        student_logits=model.head(target),
        teacher_logits=text(target),
        source_teacher_logits=text(source),
        source_labels=data.source_labels,
        iteration=50,
    )
    torch.testing.assert_close(phase.total, cross_entropy + terms.total)
    assert {name: term.item() for name, term in phase.terms.items()} == pytest.approx(
        {
            "classification": cross_entropy.item(),
            "task": terms.task.item(),
            "distill": terms.distill.item(),
            "regularization": terms.regularization.item(),
        }
    )
    assert not any(term.requires_grad for term in phase.terms.values())


def test_the_encoder_is_called_once():
    model = student()
    only_phase(CMKD(teacher()), model, batch())
    assert model.encoder.calls == [12]
    model = student()
    only_phase(CMKD(teacher(), fixmatch=FixMatch()), model, batch(strong=True))
    assert model.encoder.calls == [19]


def test_fixmatch_adds_both_views():
    model, data, text = student(), batch(strong=True), teacher()
    plain = only_phase(CMKD(text), model, data)
    phase = only_phase(CMKD(text, fixmatch=FixMatch(2.0, threshold=0.4)), model, data)
    weak, strong = model.encoder(data.target_images), model.encoder(data.target_strong_images)
    student_view = 2.0 * pseudo_label_loss(model.head(weak), model.head(strong), 0.4)
    teacher_view = 2.0 * pseudo_label_loss(text(weak), text(strong), 0.4)
    assert student_view.item() > 0
    assert teacher_view.item() > 0
    torch.testing.assert_close(phase.total, plain.total + student_view + teacher_view)
    assert phase.terms["fixmatch_student"].item() == pytest.approx(student_view.item())
    assert phase.terms["fixmatch_teacher"].item() == pytest.approx(teacher_view.item())


def test_gradients_reach_encoder_and_head_but_no_teacher():
    model = student()
    objective = CMKD(PrototypeTeacher(nn.Linear(DIM, 9).double(), torch.randn(CLASSES, 9).double().softmax(1)))
    only_phase(objective, model, batch()).total.backward()
    assert [p for p in objective.parameters() if p.requires_grad or p.grad is not None] == []
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"head.batch_norm.bias"}


def test_a_trainable_teacher_is_refused():
    with pytest.raises(ValueError, match=names("teacher", "weight", (4, 6))):
        CMKD(nn.Linear(DIM, CLASSES))


def test_partial_set_weights_and_classes():
    model, data, text = student(), batch(strong=True), teacher()
    partial = PartialSet(CLASSES)
    partial.kept[1] = False
    loss = CMKDLoss(max_iterations=100)
    phase = only_phase(CMKD(text, loss, fixmatch=FixMatch(threshold=0.3), partial_set=partial), model, data)

    source, target, strong = (
        model.encoder(images) for images in (data.source_images, data.target_images, data.target_strong_images)
    )
    classification = F.cross_entropy(model.head(source), data.source_labels, label_smoothing=0.1)
    cmkd = loss(
        student_logits=model.head(target),
        teacher_logits=text(target),
        source_teacher_logits=text(source),
        source_labels=data.source_labels,
        iteration=50,
        classes=partial.kept,
    ).total
    fixmatch = FixMatch(threshold=0.3)(
        student_weak=model.head(target),
        student_strong=model.head(strong),
        teacher_weak=text(target),
        teacher_strong=text(strong),
        classes=partial.kept,
    ).total
    torch.testing.assert_close(phase.total, 0.5 * classification + 0.1 * (cmkd + fixmatch))


def target_batches(model: Student, size: int = 30):
    images = torch.randn(size, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    chunks = zip(images.split(8), torch.arange(size).split(8), strict=True)
    with torch.no_grad():
        counts = torch.bincount(model.eval()(images).argmax(1), minlength=CLASSES)
    model.train()
    return [TargetBatch(*chunk) for chunk in chunks], counts


def test_refresh_keeps_all_classes_first_and_then_counts():
    model = student()
    target, counts = target_batches(model)
    threshold = int(counts.max())
    objective = CMKD(teacher(), partial_set=PartialSet(CLASSES, min_count=threshold))
    objective.refresh(model, target)
    assert objective.partial_set.kept.all()
    objective.refresh(model, target)
    assert objective.partial_set.kept.tolist() == (counts >= threshold).tolist()
    assert not objective.partial_set.kept.all()


def test_refresh_reads_no_targets_where_the_source_has_no_classes_of_its_own():
    CMKD(teacher()).refresh(student(), iter(lambda: pytest.fail("a batch was asked for"), None))


def test_refresh_leaves_the_student_as_it_was():
    model = student()
    target, _ = target_batches(model)
    model.encoder.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = CMKD(teacher(), partial_set=PartialSet(CLASSES, min_count=1))
    objective.refresh(model, target)
    objective.refresh(model, target)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.head.training
    assert not model.encoder.training


def test_what_it_asks_of_the_loop():
    plain, full = CMKD(teacher()), CMKD(teacher(), fixmatch=FixMatch(), partial_set=PartialSet(CLASSES))
    assert (plain.needs_strong_images, plain.needs_target_pass) == (False, False)
    assert (full.needs_strong_images, full.needs_target_pass) == (True, True)
    with pytest.raises(ValueError, match=names("target_strong_images", None)):
        only_phase(full, student(), batch())


def test_autocast_gives_finite_float32_losses():
    model = student().float()
    data = batch(strong=True)
    data = dataclasses.replace(
        data,
        source_images=1e3 * data.source_images.float(),
        target_images=1e3 * data.target_images.float(),
        target_strong_images=1e3 * data.target_strong_images.float(),
    )
    objective = CMKD(teacher().float(), CMKDLoss(max_iterations=100), fixmatch=FixMatch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        phase = only_phase(objective, model, data)
    phase.total.backward()
    assert phase.total.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_it_adapts_where_source_only_cannot():
    """A cluster a class; the target's are shifted. Label-free steps must raise the target's accuracy."""
    torch.manual_seed(0)
    centres = 2 * torch.randn(CLASSES, 12, dtype=torch.float64)
    labels = torch.arange(160) % CLASSES
    source = (centres[labels] + 0.5 * torch.randn(160, 12)).view(-1, 3, 2, 2)
    target = (centres[labels] + 0.5 * torch.randn(160, 12) + 3.5 * torch.randn(12)).view(-1, 3, 2, 2)

    def adapted(objective_of) -> float:
        model = student()
        with torch.no_grad():
            text = TextTeacher(model.encoder(centres.view(-1, 3, 2, 2)), 5.0)
        objective = objective_of(text)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
        data = DomainBatch(source, labels, target, torch.arange(160))
        for iteration in range(60):
            for phase in objective.phases(model.train(), data, iteration=iteration, max_iterations=60):
                optimizer.zero_grad()
                phase.total.backward()
                optimizer.step()
        with torch.no_grad():
            return (model.eval()(target).argmax(1) == labels).double().mean().item()

    assert adapted(lambda text: CMKD(text, CMKDLoss(max_iterations=60))) > adapted(lambda _: SourceOnly()) + 0.1


def test_the_heads_batchnorm_sees_the_source_then_the_target():
    """In eval mode the head uses running statistics, which end nearer the domain that came last."""
    model, images = student(), batch(strong=True)
    with torch.no_grad():
        domains = [model.encoder(part) for part in (images.source_images, images.target_images)]
        domains.append(model.encoder(images.target_strong_images))
    mean = torch.zeros(DIM, dtype=torch.float64)
    for features in domains:
        mean = 0.9 * mean + 0.1 * features.mean(dim=0)
    next(CMKD(teacher(), fixmatch=FixMatch()).phases(model, images, iteration=0, max_iterations=10))
    torch.testing.assert_close(model.head.batch_norm.running_mean, mean)
