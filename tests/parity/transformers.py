"""Methods that take a ViT apart: CDTrans, SSRT and PMTrans."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cmkd import DomainBatch, Objective, Phase, Student
from cmkd.baselines import (
    SSRT,
    CDTrans,
    PMTrans,
    neighbour_labels,
    self_refinement_loss,
    two_way_pairs,
)
from cmkd.baselines.cdtrans import distillation_loss
from cmkd.baselines.safe_training import SafeTraining
from tests.parity.numbers import Case, Differences, leaf


def _vit(case: Case) -> VisionTransformer:
    vit = VisionTransformer(
        img_size=case["image_size"],
        patch_size=case["patch_size"],
        embed_dim=case["embed_dim"],
        depth=case["depth"],
        num_heads=case["num_heads"],
        num_classes=0,
    ).double()
    vit.load_state_dict({key.removeprefix("vit."): value for key, value in case.items() if key.startswith("vit.")})
    return vit


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).double()
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return layer


def _two_layers(case: Case, name: str) -> nn.Sequential:
    layers = [_linear(case[f"{name}_w{number}"], case[f"{name}_b{number}"]) for number in (1, 2)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


def _total(
    case: Case, objective: Objective, head: nn.Module, weights: dict[str, Tensor], found: Differences, **when: int
) -> Phase:
    """The one phase of a method on a case's images; `weights` are compared beside the images and the embedding."""
    vit = _vit(case)
    images = {key: leaf(case[key]) for key in ("source_images", "target_images")}
    positions = case.get("target_positions", torch.arange(len(images["target_images"])))
    batch = DomainBatch(images["source_images"], case["source_labels"], images["target_images"], positions)
    (phase,) = objective.phases(Student(vit, head), batch, **when)
    phase.total.backward()
    found.value("value", phase.total, case["value"])
    weights = {**images, **weights, "vit.patch_embed.proj.weight": vit.patch_embed.proj.weight}
    for key, weight in weights.items():
        found.gradient(key, weight.grad, case[f"grad_{key}"])
    return phase


def cdtrans(name: str, case: Case) -> Differences:
    found = Differences()
    if name.startswith("pairs"):
        pairs = two_way_pairs(
            *(case[f"{domain}_features"] for domain in ("source", "target")),
            *(case[f"{domain}_labels"] for domain in ("source", "target")),
        )
        here = {tuple(pair) for pair in torch.stack(pairs, dim=1).tolist()}
        there = {tuple(pair) for pair in case["pairs"].tolist()}
        found.equal("pairs", len(here ^ there), 0)
    elif name.startswith("distillation"):
        teacher, student = leaf(case["teacher_logits"]), leaf(case["student_logits"])
        loss = distillation_loss(teacher, student)
        loss.backward()
        found.value("value", loss, case["value"])
        found.gradient("teacher_logits", teacher.grad, case["grad_teacher_logits"])
        found.gradient("student_logits", student.grad, case["grad_student_logits"])
    else:
        _cdtrans_total(case, found)
    return found


def _cdtrans_total(case: Case, found: Differences) -> None:
    objective = CDTrans(source_fraction=0, label_smoothing=0)
    labels = case["target_labels"]
    objective.pseudo_labels.store(torch.arange(len(labels)), labels)
    head = _linear(case["head_weight"])
    seen: list[Tensor] = []
    head.register_forward_hook(lambda module, inputs, logits: seen.append(inputs[0].detach()))
    when = {"iteration": 0, "max_iterations": 10}
    phase = _total(case, objective, head, {"head_weight": head.weight}, found, **when)
    for part in ("classification", "pseudo", "distillation"):
        found.value(part, phase.terms[part], case[part])
    size = len(case["source_labels"])
    for key, features in zip(("source", "target", "cross"), seen[0].split(size), strict=True):
        found.value(f"{key}_features", features, case[f"{key}_features"])


def ssrt(name: str, case: Case) -> Differences:
    found = Differences()
    if name.startswith("refinement"):
        teacher, student = leaf(case["teacher_logits"]), leaf(case["student_logits"])
        loss = self_refinement_loss(teacher, student, case["confidence"])
        loss.backward()
        found.value("value", loss, case["value"])
        found.gradient("teacher_logits", teacher.grad, case["grad_teacher_logits"])
        found.gradient("student_logits", student.grad, case["grad_student_logits"])
    elif name.startswith("safe_training"):
        _safe_training(case, found)
    else:
        _ssrt_total(case, found)
    return found


def _safe_training(case: Case, found: Differences) -> None:
    safety = SafeTraining(case["interval"], case["scales"])
    model = nn.Linear(1, 1)
    strengths, restores = [], []
    for iteration, diversity in enumerate(case["diversities"].tolist()):
        with torch.no_grad():
            model.weight.fill_(iteration)  # every iteration moves it, so that a restore shows
        strengths.append(safety.begin(iteration, model))
        if model.weight.item() != iteration:
            restores.append(iteration)
        safety.record(iteration, diversity)
    found.value("strengths", torch.tensor(strengths, dtype=torch.float64), case["strengths"])
    found.equal("restores", restores, case["restores"])


def _ssrt_total(case: Case, found: Differences) -> None:
    objective = SSRT(
        case["embed_dim"],
        weight=case["weight"],
        perturbation=case["perturbation"],
        layers=(case["layer"],),
        confidence=case["confidence"],
        plain_teacher_chance=float(case["plain_teaches"]),
        label_smoothing=0.0,
    )
    objective.discriminator, head = _two_layers(case, "discriminator"), _two_layers(case, "head")
    weights = {}
    for name, module in (("head", head), ("discriminator", objective.discriminator)):
        for number, layer in ((1, module[0]), (2, module[2])):
            weights |= {f"{name}_w{number}": layer.weight, f"{name}_b{number}": layer.bias}
    _total(case, objective, head, weights, found, iteration=case["iteration"], max_iterations=10_000)


def pmtrans(name: str, case: Case) -> Differences:
    found = Differences()
    labels, confidences = neighbour_labels(case["memory_features"], case["memory_probabilities"], case["neighbours"])
    positions = case["target_positions"]
    found.equal("target_labels", labels[positions], case["target_labels"])
    found.value("target_confidences", confidences[positions], case["target_confidences"])

    objective = PMTrans(
        feature_weight=case["feature_weight"],
        label_weight=case["label_weight"],
        neighbours=case["neighbours"],
        label_smoothing=case["label_smoothing"],
    )
    everyone = torch.arange(len(labels))
    objective.pseudo_labels.store(everyone, labels)
    objective.confidences.store(everyone, confidences)
    head = _linear(case["head_weight"], case["head_bias"])
    shares: Callable[..., Any] = lambda *sizes: case["shares"]  # noqa: E731
    with patch.object(objective.patch_shares, "forward", shares):
        phase = _total(
            case,
            objective,
            head,
            {"head_weight": head.weight, "head_bias": head.bias},
            found,
            iteration=0,
            max_iterations=10,
        )
    for part in ("feature_mixup", "label_mixup"):
        found.value(part, phase.terms[part], case[part])
    return found
