"""The interface of every adaptation method: a student, a batch of both domains, and losses phase by phase."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

PARTS = ("encoder", "head", "objective")
"""The parts whose weights a phase may train: the image encoder, the task head, and the objective's own modules."""


class Student(nn.Module):
    """The image encoder f and the task head h: the model that is trained, evaluated and deployed (Sec. III.A)."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        """Join an encoder, images (B, 3, H, W) to features (B, D), and a head, features to logits (B, C)."""
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, C) of images (B, 3, H, W)."""
        logits: Tensor = self.head(self.encoder(images))
        return logits


@dataclass(frozen=True)
class DomainBatch:
    """The data of both domains for one iteration.

    Attributes:
        source_images: (S, 3, H, W), floating point.
        source_labels: (S,), int64.
        target_images: (T, 3, H, W), weakly augmented.
        target_positions: (T,), int64: the position of each image in the target training set.
        target_strong_images: (T, 3, H, W), the same images strongly augmented, if the objective needs them.
    """

    source_images: Tensor
    source_labels: Tensor
    target_images: Tensor
    target_positions: Tensor
    target_strong_images: Tensor | None = None


class TargetBatch(NamedTuple):
    """A batch of a pass over the whole target training set: images (T, 3, H, W) and positions (T,), int64."""

    images: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Phase:
    """One optimiser step: the loss to minimise, and the parts to update.

    Attributes:
        total: 0-d, the loss to call `backward` on.
        terms: the terms of the loss by name, 0-d, for logging.
        trains: the parts among `PARTS` that the step updates; the gradients of the others are discarded.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    trains: tuple[str, ...] = PARTS


class Objective(nn.Module):
    """A method of adaptation: everything except the training loop.

    In each iteration, the loop draws a `DomainBatch` and takes one optimiser step per phase:

        for phase in objective.phases(student, batch, iteration=t, max_iterations=n):
            optimizer.zero_grad()
            phase.total.backward()
            ...                      # drop the gradients of the parts that are not in phase.trains
            optimizer.step()

    A phase is computed when the loop requests it, so it uses the weights that the earlier phases have updated. The
    modules of an objective (domain discriminators, second heads) hold its own parameters: pass them to the optimiser.
    """

    needs_strong_images: bool = False
    """Whether `DomainBatch.target_strong_images` is required."""

    needs_target_pass: bool = False
    """Whether the loop calls `refresh`, by default before the first iteration and once per target epoch."""

    def task_head(self, feature_dim: int, classes: int) -> nn.Module | None:
        """Return the method's own head, features (B, feature_dim) to logits (B, classes), or None if any will do."""
        return None

    def refresh_due(self, iteration: int, *, iterations_per_epoch: int, max_iterations: int) -> bool:
        """Return whether the loop calls `refresh` before this iteration; an epoch is one pass over the target."""
        return self.needs_target_pass and iteration % iterations_per_epoch == 0

    def refresh(self, student: Student, target: Iterable[TargetBatch]) -> None:
        """Compute pseudo-labels or class estimates from the whole target training set. Called without gradients."""

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield the phases of this iteration; iterations are counted from 0."""
        raise NotImplementedError
