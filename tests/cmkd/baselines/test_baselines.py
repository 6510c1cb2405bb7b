"""Every method by its name: it trains what it says, its loss falls, and a killed run goes on as if it had not been."""

import copy
import io

import pytest
import torch

from cmkd.baselines import BASELINES
from cmkd.objective import DomainBatch
from tests.cmkd.baselines.problem import (
    CLASSES,
    FEATURES,
    Problem,
    assert_trains_what_it_says,
    mlp_student,
    train,
    vit_student,
)
from tests.messages import names

VIT_ONLY = ("cdtrans", "ssrt", "pmtrans")
SETTINGS = {"ssrt": {"interval": 6, "hidden": 16}, "dann": {"hidden": 16}, "cdan": {"hidden": 16}}
STUDENTS = {
    **{f"{name}-mlp": (name, mlp_student) for name in BASELINES if name not in VIT_ONLY},
    **{f"{name}-open_clip": (name, vit_student) for name in VIT_ONLY},
    **{f"{name}-timm": (name, lambda: vit_student("timm")) for name in VIT_ONLY},
}
every_method = pytest.mark.parametrize(("name", "make_student"), STUDENTS.values(), ids=STUDENTS.keys())


def build(name: str):
    torch.manual_seed(1)
    return BASELINES[name](feature_dim=FEATURES, classes=CLASSES, **SETTINGS.get(name, {}))


def mean_term(history, term: str) -> float:
    values = [phase.terms[term].item() for phases in history for phase in phases if term in phase.terms]
    return sum(values) / len(values)


@every_method
def test_the_source_is_learnt(name, make_student):
    history = train(build(name), make_student(), Problem(), 24, rate=0.1)
    learning = [phases for phases in history if any("classification" in phase.terms for phase in phases)]
    assert mean_term(learning[-5:], "classification") < 0.75 * mean_term(learning[:5], "classification")


@every_method
def test_phases_train_what_they_say(name, make_student):
    student, objective, problem = make_student(), build(name), Problem()
    train(objective, student, problem, 10, max_iterations=10)
    if objective.needs_target_pass:
        objective.refresh(student, problem.target_pass())
    for iteration in (1, 9):
        for phase in objective.phases(student, problem.batch(), iteration=iteration, max_iterations=10):
            assert_trains_what_it_says(phase, student, objective)
            assert all(term.ndim == 0 and term.isfinite() for term in phase.terms.values())


@every_method
def test_every_weight_of_the_objective_is_trained(name, make_student):
    student, objective, problem = make_student(), build(name), Problem()
    before = copy.deepcopy(dict(objective.named_parameters()))
    train(objective, student, problem, 10)
    for parameter_name, parameter in objective.named_parameters():
        assert not parameter.requires_grad or not torch.equal(parameter, before[parameter_name]), parameter_name


@every_method
def test_a_resumed_run_is_the_run(name, make_student):
    def state_after(pause: bool):
        student, objective, problem = make_student(), build(name), Problem()
        torch.manual_seed(5)
        train(objective, student, problem, 8, max_iterations=20, epoch=7)
        if pause:
            file = io.BytesIO()
            torch.save(objective.state_dict(), file)
            file.seek(0)
            with torch.random.fork_rng():
                objective = BASELINES[name](feature_dim=FEATURES, classes=CLASSES, **SETTINGS.get(name, {}))
            objective.load_state_dict(torch.load(file))
        train(objective, student, problem, 6, start=8, max_iterations=20, epoch=100)
        return student.state_dict()

    whole, resumed = state_after(False), state_after(True)
    for key, tensor in whole.items():
        assert torch.equal(tensor, resumed[key]), key


@every_method
@pytest.mark.parametrize(("source", "target"), [(2, 2), (2, 5), (5, 2)])
def test_small_and_unequal_batches(name, make_student, source, target):
    student, objective, problem = make_student(), build(name), Problem()
    if objective.needs_target_pass:
        objective.refresh(student, problem.target_pass())
    for iteration in (0, 9):
        for phase in objective.phases(student, problem.batch(source, target), iteration=iteration, max_iterations=10):
            phase.total.backward()
            assert phase.total.isfinite()


@every_method
def test_autocast_gives_finite_losses(name, make_student):
    student, objective, problem = make_student(), build(name), Problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if objective.needs_target_pass:
            objective.refresh(student, problem.target_pass())
        for phase in objective.phases(student, problem.batch(), iteration=9, max_iterations=10):
            assert phase.total.dtype == torch.float32
            assert phase.total.isfinite()
            phase.total.backward()


@pytest.mark.parametrize("name", VIT_ONLY)
def test_encoders_that_are_no_vit_are_refused(name):
    student, objective, problem = mlp_student(), build(name), Problem()
    if objective.needs_target_pass:
        objective.refresh(student, problem.target_pass())
    with pytest.raises(ValueError, match=names("encoder", "VisionTransformer", "Sequential")):
        next(objective.phases(student, problem.batch(), iteration=9, max_iterations=10))


@every_method
def test_labels_are_asked_for_before_they_are_used(name, make_student):
    objective, student, problem = build(name), make_student(), Problem()
    if not objective.needs_target_pass:
        return
    with pytest.raises(RuntimeError, match=names("refresh")):
        next(objective.phases(student, problem.batch(), iteration=9, max_iterations=10))
    objective.refresh(student, problem.target_pass()[:1])
    batch = problem.batch()
    unseen = DomainBatch(batch.source_images, batch.source_labels, batch.target_images, batch.target_positions + 20)
    with pytest.raises(RuntimeError, match=names("position", "refresh")):
        next(objective.phases(student, unseen, iteration=9, max_iterations=10))


@every_method
def test_a_pass_over_the_target_leaves_modes_and_statistics_alone(name, make_student):
    student, objective, problem = make_student(), build(name), Problem()
    if not objective.needs_target_pass:
        return
    student.head.layer_norm.eval()  # stands for a part that is frozen in eval mode
    before = copy.deepcopy(student.state_dict())
    objective.refresh(student, problem.target_pass())
    assert student.head.training
    assert not student.head.layer_norm.training
    assert objective.training
    assert all(torch.equal(before[key], tensor) for key, tensor in student.state_dict().items())


def test_an_unknown_setting_is_named():
    for name, method in BASELINES.items():
        with pytest.raises(TypeError, match=names("'wieght'")):
            method(feature_dim=FEATURES, classes=CLASSES, wieght=1.0)
        assert name == name.lower()
