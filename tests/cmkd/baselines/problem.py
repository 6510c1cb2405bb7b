"""A two-domain problem small enough to train on in a test, tiny encoders for it, and the contract's loop."""

import timm
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from cmkd.head import TaskHead
from cmkd.objective import PARTS, DomainBatch, Objective, Phase, Student, TargetBatch

CLASSES, FEATURES, SIDE, TARGET_SIZE = 4, 12, 16, 48


def images_of(labels: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    """Class prototypes (fixed) with noise; the target's are shifted and scaled."""
    prototypes = torch.randn(CLASSES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(len(labels), 3, SIDE, SIDE, generator=generator)
    return (1 - 0.3 * shift) * prototypes[labels] + 0.5 * noise + shift


class Problem:
    """Images and labels of both domains; batches of them in the contract's form."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.target_labels = torch.arange(TARGET_SIZE) % CLASSES
        self.target_images = images_of(self.target_labels, 0.5, self.generator)

    def batch(self, source: int = 12, target: int = 10) -> DomainBatch:
        labels = torch.randint(CLASSES, (source,), generator=self.generator)
        positions = torch.randperm(TARGET_SIZE, generator=self.generator)[:target]
        return DomainBatch(images_of(labels, 0.0, self.generator), labels, self.target_images[positions], positions)

    def target_pass(self, order: Tensor | None = None) -> list[TargetBatch]:
        order = torch.arange(TARGET_SIZE) if order is None else order
        return [TargetBatch(self.target_images[part], part) for part in order.split(20)]


def mlp_student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 24), nn.ReLU(), nn.Linear(24, FEATURES))
    return Student(encoder, TaskHead(FEATURES, CLASSES))


def open_clip_vit(layers: int = 2, **settings) -> VisionTransformer:
    sizes = {"image_size": SIDE, "patch_size": 8, "width": 16, "heads": 2, "mlp_ratio": 2.0, "output_dim": FEATURES}
    return VisionTransformer(layers=layers, **(sizes | settings))


def timm_vit(depth: int = 2, **settings) -> nn.Module:
    sizes = {"img_size": SIDE, "patch_size": 8, "embed_dim": FEATURES, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", depth=depth, **(sizes | settings))


def vit_student(kind: str = "open_clip", seed: int = 0) -> Student:
    torch.manual_seed(seed)
    encoder = open_clip_vit(3) if kind == "open_clip" else timm_vit(3)
    return Student(encoder, TaskHead(FEATURES, CLASSES))


def parts_of(student: Student, objective: Objective) -> dict[str, nn.Module]:
    return {"encoder": student.encoder, "head": student.head, "objective": objective}


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def train(
    objective: Objective,
    student: Student,
    problem: Problem,
    iterations: int,
    *,
    start: int = 0,
    max_iterations: int | None = None,
    epoch: int = 5,
    rate: float = 0.05,
) -> list[list[Phase]]:
    """The loop of the contract, with a pass over the target before each epoch. Returns the phases by iteration."""
    optimizer = torch.optim.SGD([*student.parameters(), *objective.parameters()], rate)
    history = []
    for iteration in range(start, start + iterations):
        if objective.refresh_due(iteration, iterations_per_epoch=epoch, max_iterations=max_iterations or iterations):
            objective.refresh(student, problem.target_pass())
        taken = []
        settings = {"iteration": iteration, "max_iterations": max_iterations or iterations}
        for phase in objective.phases(student, problem.batch(), **settings):
            optimizer.zero_grad()
            phase.total.backward()
            for name, part in parts_of(student, objective).items():
                if name not in phase.trains:
                    part.zero_grad()
            optimizer.step()
            taken.append(phase)
        history.append(taken)
    return history


def assert_trains_what_it_says(phase: Phase, student: Student, objective: Objective) -> None:
    """Backpropagate a phase and look for gradients in every part that it says it trains."""
    parts = parts_of(student, objective)
    for part in parts.values():
        part.zero_grad()
    phase.total.backward()
    assert set(phase.trains) <= set(PARTS)
    for name in phase.trains:
        if any(True for _ in parts[name].parameters()):
            assert has_gradient(parts[name]), name
