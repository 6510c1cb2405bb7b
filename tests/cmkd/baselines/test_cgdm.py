"""CGDM's losses against loops and finite differences, and its steps."""

import math

import pytest
import torch
from torch.nn import functional as F

from cmkd.baselines import CGDM, classifier_discrepancy, entropy_weighted_cross_entropy, gradient_discrepancy
from tests.cmkd.baselines.problem import CLASSES, FEATURES, Problem, mlp_student, train
from tests.messages import names


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def linear_problem():
    """Features and labels of two domains and a linear classifier, whose gradients are known in closed form."""
    torch.manual_seed(0)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    domains = [(torch.randn(n, 4, dtype=torch.float64, requires_grad=True), torch.arange(n) % 3) for n in (5, 6)]
    return weight, bias, domains


def losses_of(weight, bias, domains):
    return [F.cross_entropy(F.linear(features, weight, bias), labels) for features, labels in domains]


def test_gradient_discrepancy_is_the_loop_s():
    weight, bias, domains = linear_problem()
    by_hand = []
    for features, labels in domains:
        error = (features @ weight.T + bias).softmax(dim=1) - F.one_hot(labels, 3)
        error = error.detach() / len(labels)
        by_hand.append(((error.T @ features.detach()).tolist(), error.sum(dim=0).tolist()))
    (source_w, source_b), (target_w, target_b) = by_hand
    rows = [cosine(x, y) for x, y in zip(source_w, target_w, strict=True)]
    expected = ((1 - sum(rows) / 3) + (1 - cosine(source_b, target_b))) / 2
    got = gradient_discrepancy(*losses_of(weight, bias, domains), [weight, bias])
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_discrepancy_of_a_domain_with_itself_is_zero_and_with_its_negative_two():
    weight, bias, domains = linear_problem()
    loss = losses_of(weight, bias, domains)[0]
    assert gradient_discrepancy(loss, loss, [weight, bias]).item() == pytest.approx(0, abs=1e-12)
    assert gradient_discrepancy(loss, -loss, [weight, bias]).item() == pytest.approx(2)


def test_gradient_discrepancy_reaches_the_features():
    weight, bias, domains = linear_problem()
    features = domains[1][0]

    def discrepancy(x):
        target = F.cross_entropy(F.linear(x, weight, bias), domains[1][1])
        return gradient_discrepancy(losses_of(weight, bias, domains)[0], target, [weight, bias])

    assert torch.autograd.gradcheck(discrepancy, features)


def test_frozen_parameters_are_left_out():
    weight, bias, domains = linear_problem()
    bias.requires_grad_(False)
    losses = losses_of(weight, bias, domains)
    assert gradient_discrepancy(*losses, [weight, bias]) == gradient_discrepancy(*losses, [weight])
    with pytest.raises(ValueError, match=names(1)):
        gradient_discrepancy(*losses, [bias])


def test_a_gradient_of_zero_gives_no_nan():
    weight, bias, domains = linear_problem()
    losses = losses_of(weight, bias, domains)
    value = gradient_discrepancy(losses[0], losses[1] * 0, [weight, bias])
    value.backward()
    assert value.item() == pytest.approx(1)
    assert domains[0][0].grad.isfinite().all()


def test_weighted_cross_entropy_and_discrepancy_are_the_loops():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    rows = logits.softmax(dim=1).tolist()
    weights = [1 + math.exp(sum(p * math.log(p) for p in row)) for row in rows]
    losses = [-math.log(row[label]) for row, label in zip(rows, labels.tolist(), strict=True)]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert entropy_weighted_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-12)

    other = torch.randn(5, 3, dtype=torch.float64)
    pairs = zip(rows, other.softmax(dim=1).tolist(), strict=True)
    expected = sum(abs(a - b) for p, q in pairs for a, b in zip(p, q, strict=True)) / 15
    assert classifier_discrepancy(logits, other).item() == pytest.approx(expected, rel=1e-12)


def test_steps_are_those_of_the_released_code():
    student, problem, objective = mlp_student(), Problem(), CGDM(FEATURES, CLASSES, encoder_steps=3)
    steps = []
    for _ in range(2):
        objective.refresh(student, problem.target_pass())
        steps.append(list(objective.phases(student, problem.batch(), iteration=0, max_iterations=1)))
    for phases in steps:
        assert [phase.trains for phase in phases] == [
            ("encoder", "head", "objective"),
            ("head", "objective"),
            *[("encoder",)] * 3,
        ]
    assert "pseudo" not in steps[0][0].terms  # the first labels are an untrained head's
    assert "gradient" not in steps[0][2].terms
    assert "pseudo" in steps[1][0].terms
    assert "gradient" in steps[1][2].terms


def test_the_classifiers_raise_their_discrepancy_and_the_encoder_lowers_it():
    student, problem, objective = mlp_student(), Problem(), CGDM(FEATURES, CLASSES)
    train(objective, student, problem, 4)
    batch = problem.batch()

    def step(kind: int, part) -> tuple[float, float]:
        student.zero_grad()
        objective.zero_grad()
        phases = list(objective.phases(student, batch, iteration=0, max_iterations=1))
        name = "discrepancy" if kind == 1 else "encoder_discrepancy"
        sign = -1 if kind == 1 else 1
        weight = part.linear.weight if kind == 1 else part[1].weight
        (gradient,) = torch.autograd.grad(sign * phases[kind].terms[name], weight)
        with torch.no_grad():
            weight -= 0.01 * gradient / gradient.norm()
        after = list(objective.phases(student, batch, iteration=0, max_iterations=1))
        return phases[kind].terms[name].item(), after[kind].terms[name].item()

    before, after = step(1, student.head)
    assert after > before
    before, after = step(2, student.encoder)
    assert after < before


def test_the_totals_are_the_weighted_sums():
    student, problem, objective = mlp_student(), Problem(), CGDM(FEATURES, CLASSES)
    train(objective, student, problem, 6)
    first, second, third, *_ = objective.phases(student, problem.batch(), iteration=0, max_iterations=1)
    terms = first.terms | second.terms | third.terms
    shared = terms["classification"] + 0.01 * terms["entropy"]
    torch.testing.assert_close(first.total, shared + 0.01 * terms["pseudo"])
    torch.testing.assert_close(second.total, shared - terms["discrepancy"])
    own = terms["encoder_discrepancy"] + 0.01 * terms["entropy"] + 0.01 * terms["gradient"]
    torch.testing.assert_close(third.total, own)


def test_the_entropy_term_tells_even_predictions_from_collapsed_ones():
    student, problem, objective = mlp_student(), Problem(), CGDM(FEATURES, CLASSES)
    objective.refresh(student, problem.target_pass())
    heads = []
    for head in (student.head, objective.second_head):
        head.register_forward_hook(lambda module, inputs, logits: heads.append(logits.detach()))
    batch = problem.batch()
    phase = next(objective.phases(student, batch, iteration=0, max_iterations=1))
    expected = 0.0
    for logits in heads:
        p = logits[len(batch.source_labels) :].softmax(dim=1)
        mean = p.mean(dim=0)
        expected += float(-(p * p.log()).sum(dim=1).mean() + (mean * mean.log()).sum())
    assert phase.terms["entropy"].item() == pytest.approx(expected, abs=1e-6)
    assert expected < 0
