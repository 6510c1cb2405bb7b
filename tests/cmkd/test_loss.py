"""Eq. 12 against the formulas written out, its gradient identity, and what bad input is told."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from cmkd import PRESETS, CMKDLoss
from tests.messages import names

BATCH, SOURCE, CLASSES = 6, 4, 5


def batch(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "student_logits": 2 * torch.randn(BATCH, CLASSES, dtype=torch.float64),
        "teacher_logits": 2 * torch.randn(BATCH, CLASSES, dtype=torch.float64),
        "source_teacher_logits": 2 * torch.randn(SOURCE, CLASSES, dtype=torch.float64),
        "source_labels": torch.tensor([0, 4, 2, 2]),
    }


def with_gradients(arguments: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        name: value.to(dtype).requires_grad_() if value.is_floating_point() else value
        for name, value in arguments.items()
    }


def softmax_row(row: list[float]) -> list[float]:
    exps = [math.exp(x - max(row)) for x in row]
    return [x / sum(exps) for x in exps]


def loop_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def loop_alpha(kind: str, p_h: list[float], p_g: list[float], epsilon: float) -> float:
    return {
        "kl_student_teacher": lambda: math.exp(-loop_kl(p_h, p_g)),
        "kl_teacher_student": lambda: math.exp(-loop_kl(p_g, p_h)),
        "entropy": lambda: math.exp(sum(p * math.log(p + epsilon) for p in p_h)),
        "constant": lambda: 0.5,
    }[kind]()


def loop_gini(kind: str, views: list[list[float]], weights: list[float]) -> float:
    classes = range(len(views[0]))
    mass = [sum(view[i] for view in views) if kind == "balanced" else 1.0 for i in classes]
    impurities = [1 - sum(view[i] ** 2 / mass[i] for i in classes) for view in views]
    total = sum(c * impurity for c, impurity in zip(weights, impurities, strict=True))
    return total if kind == "balanced" else total / len(views)


def loop_terms(preset, arguments, share, lambda1=0.25, lambda2=0.1, lambda3=0.025):
    """(total, task, distill, regularization) from Eq. 4, 7, 8, 11, 12, 13, one number at a time."""
    p_h = [softmax_row(row) for row in arguments["student_logits"].tolist()]
    p_g = [softmax_row(row) for row in arguments["teacher_logits"].tolist()]
    p_s = [softmax_row(row) for row in arguments["source_teacher_logits"].tolist()]
    p_m = [[0.5 * (a + b) for a, b in zip(h, g, strict=True)] for h, g in zip(p_h, p_g, strict=True)]
    alpha = [loop_alpha(preset.alpha, h, g, preset.entropy_epsilon) for h, g in zip(p_h, p_g, strict=True)]
    task = loop_gini(preset.gini, p_h, alpha)
    distill = loop_gini(preset.gini, p_m, [1 - a for a in alpha])
    labels = arguments["source_labels"].tolist()
    source = sum(-math.log(p[y]) for p, y in zip(p_s, labels, strict=True)) / len(labels)
    regularization = lambda2 * source + lambda3 * share * loop_gini(preset.gini, p_g, [1.0] * len(p_g))
    return lambda1 * share * (task + distill) + regularization, task, distill, regularization


def ramp_share(preset, iteration, max_iterations):
    progress = iteration / max_iterations
    if preset.ramp_clip:
        progress = min(1.0, progress)
    return 2 / (1 + math.exp(-progress)) - 1


VARIANTS = {
    f"{name}-{alpha}": dataclasses.replace(preset, alpha=alpha)
    for name, preset in PRESETS.items()
    for alpha in ("kl_student_teacher", "kl_teacher_student", "entropy", "constant")
}


@pytest.mark.parametrize("iteration", [0, 40, 250])
@pytest.mark.parametrize("preset", VARIANTS.values(), ids=VARIANTS.keys())
def test_terms_match_the_loop(preset, iteration):
    arguments = batch()
    terms = CMKDLoss(preset, max_iterations=100)(**arguments, iteration=iteration)
    expected = loop_terms(preset, arguments, ramp_share(preset, iteration, 100))
    assert [term.item() for term in terms] == pytest.approx(list(expected), rel=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_lambdas_are_the_paper_s_and_can_be_given(name):
    arguments = batch()
    lambdas = {"lambda1": 2.0, "lambda2": 3.0, "lambda3": 5.0}
    terms = CMKDLoss(name, max_iterations=100, **lambdas)(**arguments, iteration=50)
    expected = loop_terms(PRESETS[name], arguments, ramp_share(PRESETS[name], 50, 100), **lambdas)
    assert [term.item() for term in terms] == pytest.approx(list(expected), rel=1e-12)


def test_the_default_is_the_released_code_with_its_ramp_of_ten_thousand():
    arguments = batch()
    official = PRESETS["official"]
    expected = loop_terms(official, arguments, ramp_share(official, 5_000, 10_000))
    assert CMKDLoss()(**arguments, iteration=5_000).total.item() == pytest.approx(expected[0], rel=1e-12)


def test_at_the_start_only_the_source_term_is_left():
    arguments = batch()
    cross_entropy = torch.nn.functional.cross_entropy(arguments["source_teacher_logits"], arguments["source_labels"])
    for name in PRESETS:
        torch.testing.assert_close(CMKDLoss(name)(**arguments, iteration=0).total, 0.1 * cross_entropy)


def written_out(preset, student, teacher, source, labels, share):
    """Eq. 12 in plain autograd, with softmax and detach where the formulas say sg."""
    p_h, p_g = student.softmax(1), teacher.softmax(1)
    p_m = 0.5 * (p_h + p_g.detach())
    p, q = (p_h, p_g) if preset.alpha == "kl_student_teacher" else (p_g, p_h)
    alpha = torch.exp(-(p * (p / q).log()).sum(1)).detach()

    def gini(view, weights):
        if preset.gini == "mean":
            return (weights * (1 - (view**2).sum(1))).mean()
        return (weights * (1 - (view**2 / view.sum(0).detach()).sum(1))).sum()

    cross_entropy = torch.nn.functional.cross_entropy(source, labels)
    cmkd = gini(p_h, alpha) + gini(p_m, 1 - alpha)
    return 0.25 * share * cmkd + 0.1 * cross_entropy + 0.025 * share * gini(p_g, torch.ones_like(alpha))


@pytest.mark.parametrize("name", PRESETS)
def test_gradients_are_those_of_the_formulas(name):
    arguments = with_gradients(batch())
    inputs = [value for value in arguments.values() if value.requires_grad]
    got = torch.autograd.grad(CMKDLoss(name, max_iterations=100)(**arguments, iteration=70).total, inputs)
    want = torch.autograd.grad(
        written_out(PRESETS[name], *arguments.values(), ramp_share(PRESETS[name], 70, 100)), inputs
    )
    for gradient, expected in zip(got, want, strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", PRESETS)
def test_gradients_match_finite_differences_where_nothing_is_detached(name):
    # With alpha constant and the mean Gini, only the teacher inside the mixed view is held; differentiate the student.
    preset = dataclasses.replace(PRESETS[name], alpha="constant", gini="mean")
    arguments = batch()
    loss = CMKDLoss(preset, max_iterations=100)
    student = arguments.pop("student_logits").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(student_logits=x, **arguments, iteration=70).total, student)


def test_gradient_identity_of_appendix_n():
    """-sum_i [(1 + 3 alpha) / 2 * p_h(i) + (1 - alpha) / 2 * p_g(i)] * dp_h(i), App. N with its factors put right."""
    arguments = with_gradients(batch())
    terms = CMKDLoss("paper")(**arguments, iteration=1)
    (gradient,) = torch.autograd.grad(terms.task + terms.distill, arguments["student_logits"])

    p_h = arguments["student_logits"].detach().softmax(1).requires_grad_()
    p_g = arguments["teacher_logits"].detach().softmax(1)
    alpha = torch.exp(-(p_h * (p_h / p_g).log()).sum(1, keepdim=True)).detach()
    by_view = -((1 + 3 * alpha) / 2 * p_h.detach() + (1 - alpha) / 2 * p_g) / BATCH
    logits = arguments["student_logits"].detach().requires_grad_()
    (expected,) = torch.autograd.grad((by_view * logits.softmax(1)).sum(), logits)
    torch.testing.assert_close(gradient, expected)


def test_paper_and_official_differ_in_alpha_s_direction():
    arguments = batch()
    paper = CMKDLoss(dataclasses.replace(PRESETS["official"], alpha=PRESETS["paper"].alpha))(**arguments, iteration=1)
    official = CMKDLoss("official")(**arguments, iteration=1)
    assert paper.task.item() != pytest.approx(official.task.item(), rel=1e-3)


def test_only_the_regulariser_moves_the_teacher():
    arguments = with_gradients(batch())
    terms = CMKDLoss("official")(**arguments, iteration=5_000)
    inputs = [arguments["teacher_logits"], arguments["source_teacher_logits"]]
    assert torch.autograd.grad(terms.task + terms.distill, inputs, retain_graph=True, allow_unused=True) == (None, None)
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(terms.regularization, inputs))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_logits_are_computed_in_float32(name, dtype):
    arguments = with_gradients(batch(), dtype)
    terms = CMKDLoss(name, max_iterations=100)(**arguments, iteration=70)
    assert {term.dtype for term in terms} == {torch.float32}
    expected = loop_terms(PRESETS[name], arguments, ramp_share(PRESETS[name], 70, 100))
    assert [term.item() for term in terms] == pytest.approx(list(expected), rel=1e-5)
    terms.total.backward()
    assert arguments["student_logits"].grad is not None
    assert arguments["student_logits"].grad.dtype == dtype


def test_autocast_changes_nothing():
    arguments = {k: v.float() if v.is_floating_point() else v for k, v in batch().items()}
    plain = CMKDLoss("official")(**arguments, iteration=5_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = CMKDLoss("official")(**arguments, iteration=5_000)
    assert plain == autocast


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_saturated_logits_give_no_nan(name, dtype):
    arguments = with_gradients({k: 1e4 * v.sign() if v.is_floating_point() else v for k, v in batch().items()}, dtype)
    terms = CMKDLoss(VARIANTS[name], max_iterations=1)(**arguments, iteration=1)
    terms.total.backward()
    assert all(term.isfinite() for term in terms)
    for value in arguments.values():
        assert value.grad is None or value.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_saturated_logits_give_no_nan_in_the_classic_term(dtype):
    arguments = with_gradients({k: 1e4 * v.sign() if v.is_floating_point() else v for k, v in batch().items()}, dtype)
    loss = CMKDLoss(dataclasses.replace(PRESETS["official"], distill="kl"), max_iterations=1)
    terms = loss(**arguments, iteration=1)
    terms.total.backward()
    assert all(term.isfinite() for term in terms)
    assert arguments["student_logits"].grad.isfinite().all()


def test_a_class_ruled_out_by_every_view_gives_no_nan():
    arguments = batch(seed=1)
    for name in ("student_logits", "teacher_logits"):
        arguments[name][:, 0] = -1e4
    arguments = with_gradients(arguments, torch.float32)
    terms = CMKDLoss("official")(**arguments, iteration=5_000)
    terms.total.backward()
    assert terms.total.isfinite()
    assert arguments["student_logits"].grad is not None
    assert arguments["student_logits"].grad.isfinite().all()


@pytest.mark.parametrize("name", PRESETS)
def test_the_classic_distillation_term(name):
    """App. Table V: `mean_b (1 - alpha_b) KL(sg(p_g) || p_h)` in the mixed view's place."""
    preset, arguments = PRESETS[name], with_gradients(batch())
    mixed = CMKDLoss(preset, max_iterations=100)(**arguments, iteration=70)
    classic = CMKDLoss(dataclasses.replace(preset, distill="kl"), max_iterations=100)(**arguments, iteration=70)
    p_h = arguments["student_logits"].softmax(1)
    p_g = arguments["teacher_logits"].softmax(1).detach()
    kinds = zip(p_h.tolist(), p_g.tolist(), strict=True)
    alpha = torch.tensor([loop_alpha(preset.alpha, h, g, preset.entropy_epsilon) for h, g in kinds])
    expected = ((1 - alpha) * (p_g * (p_g / p_h).log()).sum(1)).mean()
    torch.testing.assert_close(classic.distill, expected, rtol=1e-6, atol=0)
    student = arguments["student_logits"]
    (got,) = torch.autograd.grad(classic.distill, student, retain_graph=True)
    (want,) = torch.autograd.grad(expected, student, retain_graph=True)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)
    assert (classic.task, classic.regularization) == (mixed.task, mixed.regularization)
    share = ramp_share(preset, 70, 100)
    torch.testing.assert_close(classic.total, 0.25 * share * (classic.task + classic.distill) + classic.regularization)


TABLE_IX = [(), ("task",), ("distill",), ("task", "distill"), ("task", "distill", "regularization")]


@pytest.mark.parametrize("terms", TABLE_IX, ids="+".join)
def test_terms_can_be_left_out(terms):
    arguments = with_gradients(batch())
    full = CMKDLoss(max_iterations=100)(**arguments, iteration=70)._asdict()
    got = CMKDLoss(max_iterations=100, terms=terms)(**arguments, iteration=70)
    for name in ("task", "distill", "regularization"):
        assert getattr(got, name).item() == (full[name].item() if name in terms else 0)
    weight = 0.25 * ramp_share(PRESETS["official"], 70, 100)
    torch.testing.assert_close(got.total, weight * (got.task + got.distill) + got.regularization)
    assert got.total.requires_grad == bool(terms)


@pytest.mark.parametrize("name", PRESETS)
def test_dropped_classes_leave_the_views_but_neither_alpha_nor_the_source(name):
    preset, arguments = PRESETS[name], batch()
    classes = torch.tensor([True, False, True, True, False])
    terms = CMKDLoss(preset, max_iterations=100)(**arguments, iteration=70, classes=classes)
    p_h = [softmax_row(row) for row in arguments["student_logits"].tolist()]
    p_g = [softmax_row(row) for row in arguments["teacher_logits"].tolist()]
    alpha = [loop_alpha(preset.alpha, h, g, preset.entropy_epsilon) for h, g in zip(p_h, p_g, strict=True)]
    kept_h, kept_g = ([[row[i] for i in (0, 2, 3)] for row in view] for view in (p_h, p_g))
    kept_m = [[0.5 * (a + b) for a, b in zip(h, g, strict=True)] for h, g in zip(kept_h, kept_g, strict=True)]
    cross_entropy = torch.nn.functional.cross_entropy(arguments["source_teacher_logits"], arguments["source_labels"])
    lambda3 = 0.025 * ramp_share(preset, 70, 100)
    assert [term.item() for term in terms[1:]] == pytest.approx(
        [
            loop_gini(preset.gini, kept_h, alpha),
            loop_gini(preset.gini, kept_m, [1 - a for a in alpha]),
            0.1 * cross_entropy.item() + lambda3 * loop_gini(preset.gini, kept_g, [1.0] * BATCH),
        ],
        rel=1e-6,
    )


def test_all_classes_are_no_mask():
    arguments = batch()
    everything = torch.ones(CLASSES, dtype=torch.bool)
    assert CMKDLoss()(**arguments, iteration=9, classes=everything) == CMKDLoss()(**arguments, iteration=9)


def test_batches_of_source_and_target_may_differ_in_size():
    assert SOURCE != BATCH
    CMKDLoss()(**batch(), iteration=0).total.item()


@pytest.mark.parametrize(
    ("name", "value", "facts"),
    [
        ("student_logits", torch.zeros(5), ((5,),)),
        ("student_logits", torch.zeros(0, 5), ((0, 5),)),
        ("student_logits", torch.zeros(6, 5, dtype=torch.int64), (torch.int64,)),
        ("teacher_logits", torch.zeros(6, 4), ((6, 4), (6, 5))),
        ("teacher_logits", torch.zeros(1, 5), ((1, 5), (6, 5))),
        ("source_teacher_logits", torch.zeros(4, 6), ((4, 6), 5)),
        ("source_teacher_logits", torch.zeros(4), ((4,),)),
        ("source_labels", torch.zeros(3, dtype=torch.int64), ((4,), (3,))),
        ("source_labels", torch.zeros(4), ("int64", torch.float32)),
        ("classes", torch.ones(4, dtype=torch.bool), ((5,), (4,))),
        ("classes", torch.zeros(5, dtype=torch.bool), ("True", torch.bool)),
        ("classes", torch.ones(5), (torch.float32,)),
    ],
)
def test_bad_input_is_named_with_its_shapes(name, value, facts):
    with pytest.raises(ValueError, match=names(name, *facts)):
        CMKDLoss()(**(batch() | {name: value}), iteration=0)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=names("preset", *PRESETS, "'offical'")):
        CMKDLoss("offical")
    with pytest.raises(ValueError, match=names("terms", "task", "distill", "regularization", "'reg'")):
        CMKDLoss(terms=["task", "reg"])
    with pytest.raises(ValueError, match=names("max_iterations", 0)):
        CMKDLoss(max_iterations=0)
    with pytest.raises(ValueError, match=names("iteration", -1)):
        CMKDLoss()(**batch(), iteration=-1)
