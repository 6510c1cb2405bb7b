"""Losses between the domains' features: DANN, CDAN, DSAN and CGDM."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmkd import DomainBatch, Objective, Student, TaskHead
from cmkd.baselines import CDAN, CGDM, DANN, lmmd_loss
from tests.parity.numbers import Case, Differences, HandedFeatures, HandedLogits, leaf

LAYERS = ("1", "2", "3")


def _through_unit_scale(features: Tensor, gradient: Tensor) -> Tensor:
    """What the original's gradient is once it has passed `at_unit_scale`, which leaves these features as they are."""
    scaled = leaf(features)
    (passed,) = torch.autograd.grad(F.layer_norm(scaled, scaled.shape[1:]), scaled, gradient)
    return passed


def _discriminator(case: Case) -> nn.Sequential:
    layers = []
    for number in LAYERS:
        weight, bias = case[f"w{number}"], case[f"b{number}"]
        layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def _adversary(objective: Objective, case: Case, logits: Tensor) -> Differences:
    """Values and gradients of the domain term alone, which is weighted 1."""
    found = Differences()
    discriminator = _discriminator(case)
    objective.discriminator = discriminator
    source, target = leaf(case["source_features"]), leaf(case["target_features"])
    batch = DomainBatch(source, torch.zeros(len(source), dtype=torch.int64), target, torch.arange(len(target)))
    student = Student(HandedFeatures(), HandedLogits(logits))
    (phase,) = objective.phases(student, batch, iteration=case["iteration"], max_iterations=case["max_iterations"])
    (phase.total - phase.terms["classification"]).backward()
    found.value("value", phase.terms["domain"], case["value"])
    for key, features in (("source_features", source), ("target_features", target)):
        expected = _through_unit_scale(case[key], case[f"grad_{key}"])
        found.gradient(key, features.grad, expected)
    for number, layer in zip(LAYERS, discriminator[::2], strict=True):
        found.gradient(f"w{number}", layer.weight.grad, case[f"grad_w{number}"])
        found.gradient(f"b{number}", layer.bias.grad, case[f"grad_b{number}"])
    return found


def dann(name: str, case: Case) -> Differences:
    objective = DANN(case["source_features"].shape[1])
    rows = len(case["source_features"]) + len(case["target_features"])
    return _adversary(objective, case, torch.zeros(rows, 2, dtype=torch.float64))


def cdan(name: str, case: Case) -> Differences:
    classes = case["source_logits"].shape[1]
    width = case["w1"].shape[1]
    objective = CDAN(case["source_features"].shape[1], classes, randomised_dim=width)
    if "feature_matrix" in case:
        objective.map.feature_matrix = case["feature_matrix"]
        objective.map.prediction_matrix = case["prediction_matrix"]
    return _adversary(objective, case, torch.cat([case["source_logits"], case["target_logits"]]))


def dsan(name: str, case: Case) -> Differences:
    found = Differences()
    source, target = leaf(case["source_features"]), leaf(case["target_features"])
    loss = lmmd_loss(
        source,
        target,
        case["source_labels"],
        case["target_probabilities"],
        kernel_multiple=case["kernel_multiple"],
        kernels=case["kernels"],
    )
    loss.backward()
    found.value("value", loss, case["value"])
    here = torch.cat([source.grad, target.grad])
    there = torch.cat([case["grad_source_features"], case["grad_target_features"]])
    bandwidth = _bandwidth_direction(torch.cat([case["source_features"], case["target_features"]]))
    found.gradient("features", _without(here, bandwidth), _without(there, bandwidth))
    return found


def _bandwidth_direction(rows: Tensor) -> Tensor:
    """Gradient of the mean squared distance: where the bandwidth, part of the loss here only, pulls."""
    rows = leaf(rows)
    (direction,) = torch.autograd.grad((rows[:, None] - rows[None]).square().sum(), rows)
    return direction


def _without(gradient: Tensor, direction: Tensor) -> Tensor:
    return gradient - direction * (gradient * direction).sum() / direction.square().sum()


HEAD_PARTS = {
    "batch_norm_weight": "batch_norm.weight",
    "layer_norm_weight": "layer_norm.weight",
    "layer_norm_bias": "layer_norm.bias",
    "linear_weight": "linear.weight",
}


def _head(case: Case, prefix: str) -> TaskHead:
    classes, dim = case[f"{prefix}_linear_weight"].shape
    head = TaskHead(dim, classes, linear_bias=False, layer_norm_eps=case["layer_norm_eps"]).double()
    head.load_state_dict({ours: case[f"{prefix}_{theirs}"] for theirs, ours in HEAD_PARTS.items()}, strict=False)
    return head


def cgdm(name: str, case: Case) -> Differences:
    if name.startswith("entropy"):
        return _cgdm_entropy(case)
    found = Differences()
    steps = {
        letter: _cgdm_step(case, number, entropy_weight=case["entropy_weight"]) for number, letter in enumerate("abc")
    }
    for letter, (value, gradients) in steps.items():
        found.value(f"value_{letter}", value, case[f"value_{letter}"])
        for key, gradient in gradients.items():
            if f"grad_{letter}_{key}" in case:
                found.gradient(f"{letter}_{key}", gradient, case[f"grad_{letter}_{key}"])
    (with_entropy, inside), (without, outside) = (_cgdm_step(case, 1, entropy_weight=weight) for weight in (1.0, 0.0))
    found.value("entropy", with_entropy - without, case["entropy"])
    for key in inside:
        if f"grad_entropy_{key}" in case:
            found.gradient(f"entropy_{key}", inside[key] - outside[key], case[f"grad_entropy_{key}"])
    return found


def _cgdm_step(case: Case, number: int, *, entropy_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Value and gradients of the first three steps' `number`-th: A, B or C."""
    first, second = _head(case, "head1"), _head(case, "head2")
    objective = CGDM(
        first.linear.in_features,
        first.linear.out_features,
        entropy_weight=entropy_weight,
        pseudo_weight=case["pseudo_weight"] / len(case["target_labels"]),  # the released mean divides twice
        gradient_weight=case["gradient_weight"],
        encoder_steps=1,
        label_smoothing=0.0,
    )
    objective.second_head = second
    positions = torch.arange(len(case["target_labels"]))
    objective.pseudo_labels.store(positions, case["target_labels"])
    objective.passes += 2
    images = {key: leaf(case[key]) for key in ("source_images", "target_images")}
    batch = DomainBatch(images["source_images"], case["source_labels"], images["target_images"], positions)
    phases = objective.phases(Student(nn.Flatten(), first), batch, iteration=0, max_iterations=10)
    for _ in range(number + 1):
        phase = next(phases)
    phase.total.backward()
    gradients = {key: tensor.grad for key, tensor in images.items()}
    for prefix, head in (("head1", first), ("head2", second)):
        parameters = dict(head.named_parameters())
        gradients |= {f"{prefix}_{theirs}": parameters[ours].grad for theirs, ours in HEAD_PARTS.items()}
    return phase.total.detach(), gradients


def _cgdm_entropy(case: Case) -> Differences:
    """The entropy term of given logits: a second classifier that says nothing adds a constant and no gradient."""
    found = Differences()
    results = []
    for weight in (1.0, 0.0):
        logits = leaf(case["logits"])
        objective = CGDM(3, logits.shape[1], entropy_weight=weight, encoder_steps=0)
        objective.second_head = HandedLogits(torch.zeros(2 * len(logits), logits.shape[1], dtype=torch.float64))
        objective.pseudo_labels.store(torch.arange(len(logits)), torch.zeros(len(logits), dtype=torch.int64))
        student = Student(HandedFeatures(), HandedLogits(torch.cat([torch.zeros_like(logits), logits])))
        features = torch.zeros(len(logits), 3, dtype=torch.float64)
        labels = torch.zeros(len(logits), dtype=torch.int64)
        batch = DomainBatch(features, labels, features, torch.arange(len(logits)))
        phases = objective.phases(student, batch, iteration=0, max_iterations=10)
        next(phases)
        step_b = next(phases)
        step_b.total.backward()
        results.append((step_b.total.detach(), logits.grad))
    (with_entropy, inside), (without, outside) = results
    found.value("value", with_entropy - without, case["value"])
    found.gradient("logits", inside - outside, case["grad_logits"])
    return found
