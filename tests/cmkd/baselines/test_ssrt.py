"""SSRT's perturbation, self-refinement and safe training."""

import copy
import math

import pytest
import torch
from torch import nn

from cmkd.baselines import SSRT, self_refinement_loss
from cmkd.baselines.safe_training import SafeTraining
from cmkd.baselines.ssrt import perturb
from tests.cmkd.baselines.problem import FEATURES, Problem, vit_student
from tests.messages import names


def test_the_offset_is_another_image_s_and_a_constant():
    tokens = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    perturbed = perturb(tokens, 0.3)
    for i in range(3):
        torch.testing.assert_close(perturbed[i], 0.7 * tokens[i] + 0.3 * tokens[i - 1])
    (gradient,) = torch.autograd.grad(perturbed[1].sum(), tokens)
    expected = torch.zeros_like(tokens)
    expected[1] = 1
    torch.testing.assert_close(gradient, expected)


def test_self_refinement_is_the_loop_s():
    torch.manual_seed(0)
    teacher, student = 2 * torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    p, q = teacher.softmax(dim=1).tolist(), student.softmax(dim=1).tolist()
    kept = [
        sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True) if max(x) > 0.6
    ]
    assert 0 < len(kept) < 6
    assert self_refinement_loss(teacher, student, 0.6).item() == pytest.approx(sum(kept) / len(kept), rel=1e-12)
    assert self_refinement_loss(teacher, student, 0.999).item() == 0


def test_the_strength_grows_as_a_sine_and_stays():
    safety, model = SafeTraining(interval=100), nn.Linear(2, 2)
    strengths = {}
    for t in range(250):
        strengths[t] = safety.begin(t, model)
        safety.record(t, 5)
    assert strengths[0] == 0
    assert strengths[50] == pytest.approx(math.sin(math.pi / 4))
    assert strengths[100] == strengths[249] == 1


def run(safety: SafeTraining, model: nn.Linear, diversity, start: int, end: int) -> dict[int, float]:
    """Training that adds 1 to the bias each iteration; the strength of every iteration."""
    strengths = {}
    for t in range(start, end):
        strengths[t] = safety.begin(t, model)
        with torch.no_grad():
            model.bias += 1
        safety.record(t, diversity(t))
    return strengths


def test_a_fall_of_diversity_goes_back_to_the_snapshot_and_starts_again():
    safety, model = SafeTraining(interval=10), nn.Linear(1, 1)
    nn.init.zeros_(model.bias)
    run(safety, model, lambda t: 8 if t < 15 else 3, 0, 20)
    assert model.bias.item() == 20
    strengths = run(safety, model, lambda t: 8, 20, 60)
    assert model.bias.item() == 50  # the ten iterations after the snapshot at 10 are undone
    assert strengths[20] == pytest.approx(math.sin(math.pi / 2 * 1 / 10 / 1))
    assert strengths[29] == 1


def test_a_second_fall_within_the_period_doubles_it():
    safety, model = SafeTraining(interval=10), nn.Linear(1, 1)
    run(safety, model, lambda t: 8 if t < 15 else 3, 0, 20)
    strengths = run(safety, model, lambda t: 8 if t < 25 else 3, 20, 31)
    assert strengths[29] == 1
    assert strengths[30] == pytest.approx(math.sin(math.pi / 2 * 1 / 20))


def test_falls_are_seen_on_small_scales_and_across_intervals_but_not_below_one_class():
    def restored(diversity, scales=4):
        safety, model = SafeTraining(interval=16, scales=scales), nn.Linear(1, 1)
        nn.init.zeros_(model.bias)
        run(safety, model, diversity, 0, 33)
        return model.bias.item() != 33

    assert not restored(lambda t: 5)
    assert not restored(lambda t: 5 - (t >= 20))
    assert restored(lambda t: 5 if t < 16 else 3)  # from one interval to the next
    dip = [3 if t in (20, 21) else 5 for t in range(40)]
    assert restored(lambda t: dip[t])
    assert not restored(lambda t: dip[t], scales=2)  # quarters see it diluted


def test_more_scales_than_iterations_do_no_harm():
    run(SafeTraining(interval=2, scales=4), nn.Linear(1, 1), lambda t: 8 - t, 0, 6)
    with pytest.raises(ValueError, match=names("interval", 0)):
        SafeTraining(interval=0)


def test_the_objective_restores_student_and_discriminator_and_is_resumed_with_its_snapshot():
    student, problem = vit_student(), Problem()
    objective = SSRT(FEATURES, hidden=8, interval=4, scales=0)
    snapshot = {}
    for t in range(8):
        batch = problem.batch()
        if t == 4:
            snapshot = copy.deepcopy(student.state_dict())
        next(objective.phases(student, batch, iteration=t, max_iterations=20))
        with torch.no_grad():
            for parameter in (*student.parameters(), *objective.parameters()):
                parameter += 0.01
            if t >= 4:  # everything becomes class 0
                student.head.linear.bias[0] += 100
    resumed = SSRT(FEATURES, hidden=8, interval=4, scales=0)
    resumed.load_state_dict(copy.deepcopy(objective.state_dict()))
    discriminator = objective.discriminator[0].bias.detach().clone()
    for each in (objective, resumed):
        tuned = copy.deepcopy(student).eval()
        next(each.phases(tuned, problem.batch(), iteration=8, max_iterations=20))
        weights = dict(tuned.named_parameters())
        assert all(torch.equal(weight, snapshot[name]) for name, weight in weights.items())
        torch.testing.assert_close(each.discriminator[0].bias, discriminator - 0.04)


def test_a_state_dict_is_not_changed_by_later_iterations():
    student, problem, objective = vit_student(), Problem(), SSRT(FEATURES, hidden=8)
    next(objective.phases(student, problem.batch(), iteration=0, max_iterations=20))
    state = objective.state_dict()
    before = copy.deepcopy(state["_extra_state"])
    next(objective.phases(student, problem.batch(), iteration=1, max_iterations=20))
    assert state["_extra_state"]["_diversities"] == before["_diversities"]


def test_without_strength_the_perturbed_view_is_the_plain_one():
    student, problem, objective = vit_student().eval(), Problem(), SSRT(FEATURES, hidden=8, confidence=0.0)
    with torch.no_grad():
        student.head.linear.weight *= 1000  # predictions that can differ
    (start,) = objective.phases(student, problem.batch(), iteration=0, max_iterations=10)
    assert start.terms["refinement"].item() == pytest.approx(0, abs=1e-6)
    (later,) = objective.phases(student, problem.batch(), iteration=999, max_iterations=10)
    assert later.terms["refinement"].item() > 1e-3


def test_layers_are_thirds_of_the_depth_and_others_are_refused():
    student, problem = vit_student(), Problem()
    drawn = {SSRT(FEATURES)._draw_layer(12) for _ in range(60)}
    assert drawn == {0, 4, 8}
    with pytest.raises(ValueError, match=names("layers", 0, 2, (0, 3))):
        next(SSRT(FEATURES, layers=(0, 3)).phases(student, problem.batch(), iteration=0, max_iterations=1))
