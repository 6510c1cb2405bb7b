"""From labelled photos to a domain without labels: CMKD with prototypes for a teacher (App. E), and with RST."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from cmkd import CMKD, CMKDLoss, DomainBatch, PrototypeTeacher, Student, TaskHead, relationship_prototypes
from cmkd.batchnorm import freeze_batchnorm
from examples.real_vision.compare_methods import DOMAINS
from examples.real_vision.compare_rules import BATCH, HEAD_RATE, SEEDS, draw
from examples.real_vision.few_shot import TEST, Labelled, few_shot
from examples.real_vision.network import logits, weights_file
from examples.real_vision.resuming import Run, carry_out
from examples.real_vision.rules_report import DOMAIN_NAMES, Record, cell
from examples.uda.benchmarks.pacs import PACS
from rst import ResidualSparseTrainer, RSTConfig

STEPS = 40
RATE = 1e-4
"""Of the encoder: without labels of the target there is no validation; the best one of all weights with labels."""
SHARE = 0.01
METHODS = ("prototypes", "photos alone", "CMKD", "CMKD + RST")


@dataclass(frozen=True)
class UnlabelledRun(Run):
    """One training run."""

    method: str
    domain: str
    seed: int

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.method} {self.domain} {self.seed}"


def adapt(root: Path, results: Path) -> None:
    """Run what is not done yet."""
    runs = (UnlabelledRun(name, domain, seed) for seed in range(SEEDS) for domain in DOMAINS for name in METHODS)
    carry_out(runs, partial(train, root=root), results)


def train(run: UnlabelledRun, root: Path) -> dict[str, float | int]:
    """Train from photos with labels and images of a domain without; returns the accuracy on its test images."""
    torch.manual_seed(run.seed)
    photos, target = few_shot(root, "P", run.seed).train, few_shot(root, run.domain, run.seed)
    student, teacher = student_and_teacher(root, photos)
    if run.method == "prototypes":
        return _outcome(nn.Sequential(student.encoder, teacher), target.test, 0.0)
    objective = CMKD(teacher, CMKDLoss("corrected", max_iterations=STEPS))
    optimizer = torch.optim.AdamW(
        [
            {"params": student.encoder.parameters(), "lr": RATE},
            {"params": student.head.parameters(), "lr": HEAD_RATE["adamw"]},
        ]
    )
    config = RSTConfig(ratio=SHARE, total_steps=STEPS, modules_to_save=["head"])
    trainer = ResidualSparseTrainer(student, config) if run.method == "CMKD + RST" else None
    if trainer is not None:
        trainer.attach(optimizer)
    for step in range(STEPS):
        student.train()
        optimizer.zero_grad()
        if run.method == "photos alone":
            images, labels = draw(photos)
            nn.functional.cross_entropy(student(images), labels, label_smoothing=0.1).backward()
        else:
            batch = DomainBatch(*draw(photos), draw(target.train)[0], target_positions=torch.arange(BATCH))
            (phase,) = objective.phases(student, batch, iteration=step, max_iterations=STEPS)
            phase.total.backward()
        optimizer.step()
    if trainer is None:
        return _outcome(student, target.test, 1.0)
    trainer.select()
    return _outcome(student, target.test, trainer.status().share)


def student_and_teacher(root: Path, photos: Labelled) -> tuple[Student, PrototypeTeacher]:
    """ImageNet's encoder with a new head, and its classifier with a prototype of each class, learned from photos."""
    weights = load_file(weights_file(root))
    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(weights)
    classifier, network.classifier = network.classifier, nn.Identity()
    freeze_batchnorm(network, affine=False)
    network.to(memory_format=torch.channels_last)
    images, labels = photos
    with torch.no_grad():
        probabilities = classifier(logits(network, images)).softmax(dim=1)
    half = torch.arange(len(labels)) % 2 == 0  # images of a class follow each other
    prototypes = relationship_prototypes(
        probabilities[half], labels[half], probabilities[~half], labels[~half], len(PACS.classes)
    )
    head = TaskHead(classifier.in_features, len(PACS.classes))
    return Student(network, head), PrototypeTeacher(classifier, prototypes)


def _outcome(model: nn.Module, test: Labelled, share: float) -> dict[str, float | int]:
    images, labels = test
    return {"test": float((logits(model, images).argmax(1) == labels).float().mean()), "share": share}


def write_report(records: Mapping[str, Record], folder: Path) -> list[Path]:
    """Write `unlabelled.md` into a folder. Returns its path."""
    table = folder / "unlabelled.md"
    table.write_text("\n".join(_lines(records)) + "\n")
    return [table]


def _lines(records: Mapping[str, Record]) -> Iterator[str]:
    yield "| method | encoder changed, % | " + " | ".join(DOMAIN_NAMES[one] for one in DOMAINS) + " | mean |"
    yield "|---|---:|" + "---:|" * (len(DOMAINS) + 1)
    for method in METHODS:
        runs = [one for one in records.values() if one["method"] == method]
        cells = [cell([one for one in runs if one["domain"] == domain]) for domain in DOMAINS]
        mean = statistics.mean(100 * one["test"] for one in runs)
        yield f"| {method} | {100 * max(one['share'] for one in runs):.3g} | {' | '.join(cells)} | {mean:.1f} |"
    yield ""
    yield (
        f"Test accuracy in per cent on {TEST} images of each class, mean ± standard deviation over {SEEDS} seeds; in "
        f"brackets their number where it is smaller. {STEPS} steps of AdamW at {RATE:g}: no target label chose it."
    )
