"""Gradient reversal, its schedule, the domain loss and CDAN's conditioning."""

import math

import pytest
import torch

from cmkd.baselines import CDAN, DANN, MultilinearMap, certainty_weights
from cmkd.baselines.adversary import at_unit_scale, domain_discriminator, domain_loss, reverse_gradient, steep_ramp
from tests.cmkd.baselines.problem import CLASSES, FEATURES, Problem, mlp_student


def test_the_gradient_is_reversed_and_scaled():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 4, dtype=torch.float64)
    y = reverse_gradient(x, 0.25)
    assert torch.equal(y, x)
    (y * weights).sum().backward()
    torch.testing.assert_close(x.grad, -0.25 * weights)


@pytest.mark.parametrize(("iteration", "expected"), [(0, 0.0), (30, 2 / (1 + math.exp(-3)) - 1), (100, 0.9999092)])
def test_the_schedule_is_dann_s(iteration, expected):
    assert steep_ramp(iteration, 100) == pytest.approx(expected)
    assert steep_ramp(500, 100) == steep_ramp(100, 100)


def test_the_domain_loss_is_the_loop_s():
    torch.manual_seed(0)
    source, target = torch.randn(3, 1, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    weights = torch.rand(5, dtype=torch.float64)
    source_mean = sum(-math.log(1 / (1 + math.exp(-x))) for x in source[:, 0].tolist()) / 3
    losses = [-math.log(1 - 1 / (1 + math.exp(-x))) for x in target[:, 0].tolist()]
    target_mean = sum(w * loss for w, loss in zip(weights.tolist(), losses, strict=True)) / sum(weights.tolist())
    expected = (source_mean + target_mean) / 2
    assert domain_loss(source, target, target_weights=weights).item() == pytest.approx(expected, rel=1e-12)


def test_the_discriminator_has_three_layers():
    discriminator = domain_discriminator(7, 16)
    shapes = [tuple(p.shape) for p in discriminator.parameters() if p.ndim == 2]
    assert shapes == [(16, 7), (16, 16), (1, 16)]


def test_certainty_weights_are_the_loop_s_and_constants():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rows = logits.softmax(dim=1).tolist()
    expected = [1 + math.exp(sum(p * math.log(p) for p in row)) for row in rows]
    assert certainty_weights(logits).tolist() == pytest.approx(expected, rel=1e-12)
    assert not certainty_weights(logits).requires_grad


def test_the_multilinear_map_is_the_outer_product():
    features, predictions = torch.randn(3, 5), torch.rand(3, 4)
    mapped = MultilinearMap(5, 4)(features, predictions)
    for b in range(3):
        torch.testing.assert_close(mapped[b], torch.outer(predictions[b], features[b]).flatten())


def test_the_randomised_map_keeps_inner_products_in_expectation():
    torch.manual_seed(0)
    map_ = MultilinearMap(1000, 5, randomised_dim=20_000)
    assert map_.randomised
    features = torch.nn.functional.normalize(torch.randn(1, 1000)).expand(2, -1)
    predictions = torch.tensor([[1.0, 0, 0, 0, 0], [0.6, 0.8, 0, 0, 0]])
    mapped = map_(features, predictions)
    assert mapped.shape == (2, 20_000)
    assert (mapped[0] @ mapped[1]).item() == pytest.approx(0.6, abs=0.06)


def test_the_randomised_map_is_saved_and_drawn_where_the_product_is_over_4096():
    assert not MultilinearMap(1024, 4).randomised
    assert not list(MultilinearMap(1025, 4).parameters())
    first, second = MultilinearMap(1025, 4), MultilinearMap(1025, 4)
    second.load_state_dict(first.state_dict())
    features, predictions = torch.randn(2, 1025), torch.rand(2, 4)
    assert torch.equal(first(features, predictions), second(features, predictions))


def test_cdan_s_adversary_reaches_the_encoder_reversed_and_the_head_not_at_all():
    student, objective, problem = mlp_student(), CDAN(FEATURES, CLASSES, hidden=16), Problem()
    objective.eval()  # no dropout
    batch = problem.batch()

    def domain_gradients():
        (phase,) = objective.phases(student, batch, iteration=50, max_iterations=100)
        inputs = [student.encoder[1].weight, objective.discriminator[0].weight, student.head.linear.weight]
        gradients = torch.autograd.grad(phase.terms["domain"], inputs, allow_unused=True)
        return phase.terms["domain"].item(), gradients

    loss, (encoder, discriminator, head) = domain_gradients()
    assert head is None
    with torch.no_grad():
        student.encoder[1].weight -= 1.0 * encoder / encoder.norm()
    assert domain_gradients()[0] > loss  # descent on the reversed gradient is ascent
    with torch.no_grad():
        student.encoder[1].weight += 1.0 * encoder / encoder.norm()
        objective.discriminator[0].weight -= 0.1 * discriminator / discriminator.norm()
    assert domain_gradients()[0] < loss


def test_rows_at_unit_scale_have_mean_0_and_variance_1():
    rows = at_unit_scale(5 + 3 * torch.randn(4, 100, dtype=torch.float64))
    assert rows.mean(dim=1).tolist() == pytest.approx([0.0] * 4, abs=1e-9)
    assert rows.var(dim=1, correction=0).tolist() == pytest.approx([1.0] * 4, rel=1e-5)
    assert at_unit_scale(torch.randn(2, 5).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("objective", [DANN(FEATURES, hidden=16), CDAN(FEATURES, CLASSES, hidden=16)])
def test_longer_features_do_not_raise_the_domain_loss(objective):
    """The head's BatchNorm takes the scale out of the source's loss: nothing else would hold it."""
    student, batch = mlp_student(), Problem().batch()
    objective.eval()  # no dropout
    losses = []
    for factor in (1.0, 100.0):
        with torch.no_grad():
            student.encoder[3].weight *= factor
            student.encoder[3].bias *= factor
            (phase,) = objective.phases(student, batch, iteration=50, max_iterations=100)
        losses.append(phase.terms["domain"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
