"""CMKD's own loss, FixMatch and the partial set, against the released VLP-UDA."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from cmkd import (
    CMKD,
    PRESETS,
    CMKDLoss,
    DomainBatch,
    FixMatch,
    PartialSet,
    Student,
    entropy_alpha,
    estimate_classes,
    kl_alpha,
    sigmoid_ramp,
)
from tests.parity.numbers import Case, Differences, HandedFeatures, leaf


def cmkd_loss(name: str, case: Case) -> Differences:
    found = Differences()
    official = PRESETS["official"]
    preset = replace(official, alpha="entropy") if case["alpha_kind"] == "entropy" else official
    loss = CMKDLoss(preset, **{key: case[key] for key in ("max_iterations", "lambda1", "lambda2", "lambda3")})
    logits = {key: leaf(case[key]) for key in ("student_logits", "teacher_logits", "source_teacher_logits")}
    terms = loss(
        **logits, source_labels=case["source_labels"], iteration=case["iteration"], classes=case["kept"].bool()
    )
    terms.total.backward()
    found.value("value", terms.total, case["value"])
    for key, tensor in logits.items():
        found.gradient(key, tensor.grad, case[f"grad_{key}"])
    found.value("ramp", sigmoid_ramp(case["iteration"], case["max_iterations"]), case["ramp"])
    log_student, log_teacher = case["student_logits"].log_softmax(1), case["teacher_logits"].log_softmax(1)
    alpha = entropy_alpha(log_student, 1e-5) if case["alpha_kind"] == "entropy" else kl_alpha(log_teacher, log_student)
    found.value("alpha", alpha, case["alpha"])
    return found


def fixmatch(name: str, case: Case) -> Differences:
    found = Differences()
    logits = {key: leaf(case[key]) for key in ("student_weak", "student_strong", "teacher_weak", "teacher_strong")}
    total = FixMatch(case["weight"], case["threshold"])(**logits, classes=case["kept"].bool()).total
    total.backward()
    found.value("value", total, case["value"])
    for key, tensor in logits.items():
        found.gradient(key, tensor.grad, case[f"grad_{key}"])
    return found


class Columns(nn.Module):
    """A view that takes its columns of the handed logits: the student's first, then the teacher's."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.columns = slice(start, end)

    def forward(self, features: Tensor) -> Tensor:
        return features[:, self.columns]


def partial_set(name: str, case: Case) -> Differences:
    found = Differences()
    if name.startswith("estimate"):
        kept = estimate_classes(case["predictions"], case["classes"], min_count=case["min_count"])
        found.equal("kept", kept, case["kept"].bool())
        found.equal("kept_first_epoch", PartialSet(case["classes"]).kept, case["kept_first_epoch"].bool())
    elif name == "schedule":
        _partial_schedule(case, found)
    else:
        _partial_loss(name, case, found)
    return found


def _partial_schedule(case: Case, found: Differences) -> None:
    objective = CMKD(Columns(65, 130), CMKDLoss("official"), partial_set=PartialSet(65))
    epoch = -(-case["target_images"] // case["batch_size"])
    due = [
        iteration
        for iteration in range(case["max_iterations"])
        if objective.refresh_due(iteration, iterations_per_epoch=epoch, max_iterations=case["max_iterations"])
    ]
    found.equal("refresh_iterations", due, case["refresh_iterations"])


def _partial_loss(name: str, case: Case, found: Differences) -> None:
    classes = len(case["kept"])
    partial = PartialSet(classes)
    partial.kept.copy_(case["kept"].bool())
    fixmatch = FixMatch(case["fixmatch_weight"], case["fixmatch_threshold"]) if "fixmatch" in name else None
    objective = CMKD(
        Columns(classes, 2 * classes),
        CMKDLoss("official", max_iterations=case["max_iterations"]),
        fixmatch=fixmatch,
        partial_set=partial,
        label_smoothing=case["label_smoothing"],
    )
    views = {key: leaf(case[key]) for key in ("source_views", "target_views", "strong_views")}
    size = len(case["source_labels"])
    batch = DomainBatch(
        views["source_views"], case["source_labels"], views["target_views"], torch.arange(size), views["strong_views"]
    )
    student = Student(HandedFeatures(), Columns(0, classes))
    (phase,) = objective.phases(student, batch, iteration=case["iteration"], max_iterations=case["max_iterations"])
    phase.total.backward()
    found.value("value", phase.total, case["value"])
    classification = partial.classification_weight * phase.terms["classification"]
    found.value("classification", classification, case["classification"])
    found.value("transfer", phase.total - classification, case["transfer"])
    for key, tensor in views.items():
        found.gradient(key, tensor.grad, case[f"grad_{key}"])
