"""The originals' heads with a bottleneck: SHOT trains it under a fixed classifier, DSAN aligns what it gives."""

import copy

import pytest
import torch
from torch import nn

from cmkd import Student
from cmkd.baselines import DSAN, SHOT, BottleneckHead, centroid_labels, lmmd_loss
from tests.cmkd.baselines.problem import CLASSES, FEATURES, Problem, mlp_student, train

WIDTH = 5


def student_of(objective, seed: int = 0) -> Student:
    student = mlp_student(seed)
    student.head = objective.task_head(FEATURES, CLASSES)
    return student


def test_a_method_without_a_bottleneck_leaves_the_head_to_the_loop():
    assert SHOT().task_head(FEATURES, CLASSES) is None
    assert DSAN().task_head(FEATURES, CLASSES) is None


def test_shots_head_is_normed_and_dsans_is_two_linear_layers():
    features = torch.randn(6, FEATURES)
    plain = DSAN(bottleneck=WIDTH).task_head(FEATURES, CLASSES)
    narrow = features @ plain.bottleneck.weight.T + plain.bottleneck.bias
    torch.testing.assert_close(plain(features), narrow @ plain.classifier.weight.T + plain.classifier.bias)

    normed = SHOT(bottleneck=WIDTH).task_head(FEATURES, CLASSES)
    narrow = normed.bottleneck(features)
    torch.testing.assert_close(narrow.mean(dim=0), torch.zeros(WIDTH), atol=1e-5, rtol=0)
    lengths = normed.classifier.parametrizations.weight.original0.clone()
    with torch.no_grad():
        normed.classifier.parametrizations.weight.original1.mul_(7)  # the direction's length is of no matter
    torch.testing.assert_close(normed.classifier.weight.norm(dim=1, keepdim=True), lengths)


def test_shots_target_phase_trains_the_bottleneck_and_leaves_the_classifier():
    objective, problem = SHOT(source_fraction=0.5, bottleneck=WIDTH), Problem()
    student = student_of(objective)
    train(objective, student, problem, 10, max_iterations=20, rate=0.1)
    before = copy.deepcopy(student.head)
    history = train(objective, student, problem, 10, start=10, max_iterations=20)
    assert all(phase.trains == ("encoder", "head") for phases in history for phase in phases)
    now = dict(student.head.named_parameters())
    for name, weight in before.named_parameters():
        assert torch.equal(weight, now[name]) == name.startswith("classifier"), name


def test_shots_centroids_are_those_of_the_bottlenecks_features():
    objective, problem = SHOT(source_fraction=0, bottleneck=WIDTH), Problem()
    student = student_of(objective).eval()
    objective.refresh(student, problem.target_pass())
    with torch.no_grad():
        narrow = student.head.bottleneck(student.encoder(problem.target_images))
        labels = centroid_labels(narrow, student.head.classifier(narrow).softmax(dim=1))
    assert torch.equal(objective.pseudo_labels.at(torch.arange(len(labels))), labels)


def test_dsan_aligns_the_bottlenecks_features():
    objective, problem = DSAN(bottleneck=WIDTH), Problem()
    student, batch = student_of(objective), problem.batch()
    (phase,) = objective.phases(student, batch, iteration=5, max_iterations=10)
    source, target = (
        student.head.bottleneck(student.encoder(images)) for images in (batch.source_images, batch.target_images)
    )
    probabilities = student.head.classifier(target).softmax(dim=1)
    expected = lmmd_loss(source, target, batch.source_labels, probabilities)
    torch.testing.assert_close(phase.terms["lmmd"], expected)


def test_a_head_of_another_kind_is_named():
    student, problem = mlp_student(), Problem()
    with pytest.raises(ValueError, match="TaskHead"):
        SHOT(bottleneck=WIDTH).refresh(student, problem.target_pass())
    phases = DSAN(bottleneck=WIDTH).phases(student, problem.batch(), iteration=1, max_iterations=10)
    with pytest.raises(ValueError, match="TaskHead"):
        next(phases)


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="0"):
        BottleneckHead(FEATURES, 0)
    assert isinstance(BottleneckHead(FEATURES, CLASSES).classifier, nn.Linear)
