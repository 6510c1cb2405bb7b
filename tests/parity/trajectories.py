"""Twenty-five whole training steps of VLP-UDA: losses, weights, what RST kept, BatchNorm's running statistics."""

import torch
from torch import nn

from cmkd import CMKD, CMKDLoss, DomainBatch, FixMatch, PartialSet, SourceOnly, Student, TaskHead, TextTeacher
from examples.uda.settings import Settings
from examples.uda.training import build_optimizer, set_learning_rates
from rst import ResidualSparseTrainer, RSTConfig
from tests.parity.numbers import Case, Differences


def trajectory(name: str, case: Case) -> Differences:
    found = Differences()
    student = _student(case)
    start = {key: value.clone() for key, value in _weights(student).items()}
    objective = _objective(case)
    settings = Settings(
        benchmark="office_home",
        method="cmkd",
        backbone="RN50",
        iterations=case["max_iterations"],
        encoder_lr=case["encoder_lr"],
        head_lr=case["head_lr"],
        momentum=case["momentum"],
        weight_decay=case["weight_decay"],
        evaluate_every=1000,
    )
    optimizer = build_optimizer(student, objective, settings)
    trainer = None
    if case["rst"]:
        trainer = ResidualSparseTrainer(student, RSTConfig(threshold=case["threshold"], modules_to_save=["head"]))
        trainer.attach(optimizer)
    losses, rates = [], []
    for iteration in range(len(case["losses"])):
        set_learning_rates(optimizer, settings, iteration)
        rates.append(optimizer.param_groups[0]["lr"])
        (phase,) = objective.phases(
            student, _batch(case, iteration), iteration=iteration, max_iterations=case["max_iterations"]
        )
        losses.append(phase.total.item())
        optimizer.zero_grad()
        phase.total.backward()
        optimizer.step()
    found.value("losses", torch.tensor(losses, dtype=torch.float64), case["losses"])
    found.value("encoder_rates", torch.tensor(rates, dtype=torch.float64), case["encoder_rates"])
    found.value("head_running_mean", student.head.batch_norm.running_mean, case["head_running_mean"])
    found.value("head_running_var", student.head.batch_norm.running_var, case["head_running_var"])
    for key, weight in _weights(student).items():
        there = case[f"final_{key}"] - start[key]
        found.gradient(f"change of {key}", weight.detach() - start[key], there)
    changed = sum(int((weight != start[key]).sum()) for key, weight in _weights(student).items() if "encoder" in key)
    found.equal("changed_encoder_weights", changed, case["changed_encoder_weights"])
    if trainer is not None:
        # the released code prints four digits
        found.value("dsp_millions", round(trainer.export().dsp() / 1e6, 4), case["dsp_millions"])
    return found


def _student(case: Case) -> Student:
    first, second = case["encoder_first_weight"], case["encoder_second_weight"]
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(first.shape[1], first.shape[0]), nn.Linear(second.shape[1], second.shape[0])
    ).double()
    classes, dim = case["head_linear_weight"].shape
    head = TaskHead(dim, classes, linear_bias=False, layer_norm_eps=case["layer_norm_eps"]).double()
    student = Student(encoder, head)
    with torch.no_grad():
        head.linear.weight.copy_(case["head_linear_weight"])
        for key, weight in _weights(student).items():
            if key.startswith("encoder"):
                weight.copy_(case[key])
    return student


def _weights(student: Student) -> dict[str, torch.Tensor]:
    encoder, head = student.encoder, student.head
    return {
        "encoder_first_weight": encoder[1].weight,
        "encoder_first_bias": encoder[1].bias,
        "encoder_second_weight": encoder[2].weight,
        "encoder_second_bias": encoder[2].bias,
        "head_batch_norm_weight": head.batch_norm.weight,
        "head_layer_norm_weight": head.layer_norm.weight,
        "head_layer_norm_bias": head.layer_norm.bias,
        "head_linear_weight": head.linear.weight,
    }


def _objective(case: Case) -> CMKD | SourceOnly:
    if case["source_only"]:
        return SourceOnly(case["label_smoothing"])
    partial = None
    if case["partial_set"]:
        partial = PartialSet(len(case["kept"]))
        partial.kept.copy_(case["kept"].bool())
    return CMKD(
        TextTeacher(case["text_embeddings"], case["logit_scale"]),
        CMKDLoss("official", max_iterations=case["max_iterations"]),
        fixmatch=FixMatch(case["fixmatch_weight"], case["fixmatch_threshold"]) if case["fixmatch"] else None,
        partial_set=partial,
        label_smoothing=case["label_smoothing"],
    )


def _batch(case: Case, iteration: int) -> DomainBatch:
    source, labels = case["source_images"][iteration], case["source_labels"][iteration]
    if "target_images" not in case:
        return DomainBatch(source, labels, source, torch.arange(len(source)))
    target = case["target_images"][iteration]
    strong = case["strong_images"][iteration] if "strong_images" in case else None
    return DomainBatch(source, labels, target, torch.arange(len(target)), strong)
