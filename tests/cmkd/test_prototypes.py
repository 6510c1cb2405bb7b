"""Category relationships against hand-written Bayes, the teacher's KL, and a world where the truth is known."""

import math

import pytest
import torch
from torch import nn

from cmkd import PrototypeTeacher, average_prototypes, relationship_prototypes
from tests.messages import names

CLASSES, PRETRAINED = 3, 6


def labelled(images: int, seed: int, noise: float = 1.0):
    """Pretrained classes 0, 1 belong to class 0; 2, 3 to class 1; 4, 5 to class 2; the classifier is unsure."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    guess = 2 * labels + torch.randint(2, (images,), generator=generator)
    logits = 3.0 * nn.functional.one_hot(guess, PRETRAINED) + noise * torch.randn(
        images, PRETRAINED, generator=generator, dtype=torch.float64
    )
    return logits.softmax(1), labels


def prototypes():
    torch.manual_seed(0)
    return torch.randn(CLASSES, PRETRAINED, dtype=torch.float64).softmax(1)


def test_the_average_matches_the_loop():
    p, labels = labelled(20, seed=0)
    got = average_prototypes(p, labels, CLASSES)
    for i in range(CLASSES):
        rows = [row for row, label in zip(p.tolist(), labels.tolist(), strict=True) if label == i]
        assert got[i].tolist() == pytest.approx([sum(column) / len(rows) for column in zip(*rows, strict=True)])


def test_the_relationship_is_found():
    got = relationship_prototypes(*labelled(120, seed=0), *labelled(120, seed=1), CLASSES)
    torch.testing.assert_close(got.sum(1), torch.ones(CLASSES, dtype=torch.float64))
    for i in range(CLASSES):
        assert sorted(got[i].topk(2).indices.tolist()) == [2 * i, 2 * i + 1]
        assert got[i, 2 * i : 2 * i + 2].sum() > 0.95


def test_it_is_sharper_than_the_average():
    halves = labelled(120, seed=0), labelled(120, seed=1)
    learned = relationship_prototypes(*halves[0], *halves[1], CLASSES)
    averaged = average_prototypes(*(torch.cat(pair) for pair in zip(*halves, strict=True)), CLASSES)
    own = [(i, slice(2 * i, 2 * i + 2)) for i in range(CLASSES)]
    assert all(learned[index].sum() > averaged[index].sum() for index in own)


def test_bayes_rule_on_a_fit_that_can_be_written_out():
    """Images that are sure of one pretrained class: the fit separates p(y | pretrained) as the counts do."""
    guesses = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
    p = nn.functional.one_hot(guesses, 2).double()
    got = relationship_prototypes(p, labels, p, labels, 2)
    # p(y = 0 | 0) = 3/4, p(y = 0 | 1) = 1/4, both pretrained classes as frequent: p(0 | y = 0) = 3/4.
    torch.testing.assert_close(got, torch.tensor([[0.75, 0.25], [0.25, 0.75]]).double(), atol=5e-3, rtol=0)


def test_bayes_rule_weighs_by_how_often_a_pretrained_class_is_seen():
    guesses = torch.tensor([0] * 12 + [1] * 8)
    labels = torch.tensor([0] * 9 + [1] * 3 + [1] * 7 + [0])
    p = nn.functional.one_hot(guesses, 2).double()
    got = relationship_prototypes(p, labels, p, labels, 2)
    torch.testing.assert_close(got, torch.tensor([[0.9, 0.1], [0.3, 0.7]]).double(), atol=1e-2, rtol=0)


def test_a_class_that_wins_no_pretrained_class_has_the_ones_it_loses_by_the_least():
    """Class 2 lies between 0 and 1, all close together: p(2 | pretrained) is 0 in float64 for both."""

    def images(share):
        rows = torch.tensor([[share, 1 - share], [1 - share, share], [0.5, 0.5]], dtype=torch.float64)
        return rows.repeat(2, 1), torch.tensor([0, 1, 2]).repeat(2)

    got = relationship_prototypes(*images(0.52), *images(0.5105), 3)
    torch.testing.assert_close(got[:2], torch.eye(2, dtype=torch.float64))
    assert got[2].isfinite().all()
    PrototypeTeacher(nn.Identity(), got)  # takes them as distributions


def test_the_fit_works_where_gradients_are_off():
    with torch.no_grad():
        relationship_prototypes(*labelled(12, seed=0), *labelled(12, seed=1), CLASSES)


def test_the_teacher_s_logits_are_minus_the_divergences():
    classifier = nn.Linear(5, PRETRAINED).double()
    features = torch.randn(4, 5, dtype=torch.float64)
    logits = PrototypeTeacher(classifier, prototypes())(features)
    q = classifier(features).softmax(1).tolist()
    divergences = [
        [sum(m * math.log(m / x) for m, x in zip(row, view, strict=True)) for row in prototypes().tolist()]
        for view in q
    ]
    torch.testing.assert_close(logits, -torch.tensor(divergences, dtype=torch.float64))


def test_the_gradient_passes_through_the_frozen_classifier():
    classifier = nn.Linear(5, PRETRAINED).double()
    teacher = PrototypeTeacher(classifier, prototypes())
    assert torch.autograd.gradcheck(teacher, torch.randn(4, 5, dtype=torch.float64, requires_grad=True))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in classifier.parameters())  # a copy is frozen, not the original


def test_dropout_in_the_classifier_stays_off():
    teacher = PrototypeTeacher(nn.Sequential(nn.Dropout(0.5), nn.Linear(5, PRETRAINED)), prototypes().float())
    nn.ModuleList([teacher]).train()
    features = torch.randn(4, 5)
    assert torch.equal(teacher(features), teacher(features))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_certain_prototypes_and_classifiers_give_no_nan(dtype):
    teacher = PrototypeTeacher(nn.Identity(), torch.eye(PRETRAINED)[:CLASSES])
    features = (1e4 * torch.eye(PRETRAINED) - 5e3).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = teacher(features)
    logits.sum().backward()
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert features.grad.isfinite().all()
    assert logits[:CLASSES].argmax(1).tolist() == [0, 1, 2]


def test_autocast_computes_the_divergences_in_float32():
    """The classifier may run in bfloat16; the sum over the pretrained classes may not."""
    features, m = torch.randn(4, PRETRAINED).bfloat16(), prototypes()
    expected = features.double().log_softmax(1) @ m.T - (m * m.log()).sum(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = PrototypeTeacher(nn.Identity(), m.float())(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=0)


def test_bad_input_is_named():
    p, labels = labelled(6, seed=0)
    with pytest.raises(ValueError, match=names("probabilities", 3, 4)):
        average_prototypes(p, labels, 4)
    with pytest.raises(ValueError, match=names("classes=2", 2)):
        average_prototypes(p, labels, 2)
    with pytest.raises(ValueError, match=names("validation_probabilities", (6,), (5,))):
        relationship_prototypes(p, labels, p, labels[:5], CLASSES)
    with pytest.raises(ValueError, match=names("probabilities", (6,))):
        average_prototypes(p[:, 0], labels, CLASSES)
    with pytest.raises(ValueError, match=names(1, 2.0)):
        PrototypeTeacher(nn.Identity(), torch.tensor([[0.5, 0.5], [1.0, 1.0]]))
    with pytest.raises(ValueError, match=names(0, -1.0)):
        PrototypeTeacher(nn.Identity(), torch.tensor([[2.0, -1.0]]))
    with pytest.raises(ValueError, match=names("prototypes", (2,))):
        PrototypeTeacher(nn.Identity(), torch.ones(2))
