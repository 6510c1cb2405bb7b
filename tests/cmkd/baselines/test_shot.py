"""SHOT's two phases: the head learns on the source, then stands still while the encoder fits the target."""

import pytest
import torch

from cmkd.baselines import CGDM, SHOT, CDTrans, MinEnt, centroid_labels, information_maximisation_loss
from tests.cmkd.baselines.problem import CLASSES, FEATURES, Problem, mlp_student, train
from tests.messages import names


def test_the_split_is_a_fraction_of_the_run():
    student, problem, objective = mlp_student(), Problem(), SHOT(source_fraction=0.3)
    objective.refresh(student, problem.target_pass())
    trained = [
        next(objective.phases(student, problem.batch(), iteration=t, max_iterations=10)).trains for t in range(10)
    ]
    assert trained == [("encoder", "head")] * 3 + [("encoder",)] * 7


@pytest.mark.parametrize("method", [SHOT, CDTrans])
def test_pseudo_labels_are_taken_when_the_source_phase_ends_and_once_an_epoch_after(method):
    """In a run shorter than an epoch, the loop's own passes would all come before the head has learnt anything."""

    def due(fraction, epoch, iterations=10):
        objective = method(source_fraction=fraction)
        return [
            t
            for t in range(iterations)
            if objective.refresh_due(t, iterations_per_epoch=epoch, max_iterations=iterations)
        ]

    assert due(0.5, epoch=100) == [5]
    assert due(0.25, epoch=4) == [3, 7]
    assert due(0, epoch=5) == [0, 5]
    assert due(1, epoch=5) == []


def test_a_method_without_a_source_phase_looks_at_the_target_once_an_epoch():
    due = [t for t in range(8) if CGDM(FEATURES, CLASSES).refresh_due(t, iterations_per_epoch=3, max_iterations=8)]
    assert due == [0, 3, 6]
    assert not MinEnt().refresh_due(0, iterations_per_epoch=3, max_iterations=8)


def test_the_target_phase_leaves_the_head_and_improves_the_target():
    student, problem, objective = mlp_student(), Problem(), SHOT(source_fraction=0.5)
    train(objective, student, problem, 20, max_iterations=40, rate=0.1)
    head = {name: weight.clone() for name, weight in student.head.named_parameters()}
    history = train(objective, student, problem, 20, start=20, max_iterations=40)
    assert all(torch.equal(head[name], weight) for name, weight in student.head.named_parameters())
    information = [phases[0].terms["information"].item() for phases in history]
    assert sum(information[-5:]) < sum(information[:5]) - 0.1


def test_the_target_loss_is_information_maximisation_and_beta_times_the_pseudo_labels():
    student, problem, objective = mlp_student(), Problem(), SHOT(source_fraction=0, beta=0.3)
    objective.refresh(student, problem.target_pass())
    with torch.no_grad():
        student.eval()
        features = student.encoder(problem.target_images)
        labels = centroid_labels(features, student.head(features).softmax(dim=1))
        batch = problem.batch()
        (phase,) = objective.phases(student, batch, iteration=0, max_iterations=1)
        logits = student(batch.target_images)
        pseudo = torch.nn.functional.cross_entropy(logits, labels[batch.target_positions])
    torch.testing.assert_close(phase.total, information_maximisation_loss(logits) + 0.3 * pseudo)


def test_a_fraction_out_of_range_is_named():
    with pytest.raises(ValueError, match=names("source_fraction", 1.5)):
        SHOT(source_fraction=1.5)


def test_a_class_that_lost_its_samples_gets_none_back():
    """Class 2 is one sample's arg-max; that sample lies by class 0, and class 2's centroid is gone in round two."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.05], [0.0, 1.0], [-1.0, -1.0]])
    probabilities = torch.tensor(
        [[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.3, 0.3, 0.4], [0.1, 0.9, 0.0], [0.0, 0.9, 0.1]]
    )
    labels = centroid_labels(features, probabilities)
    assert 2 not in labels.tolist()
    assert labels[:4].tolist() == [0, 0, 0, 1]
