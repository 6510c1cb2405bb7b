"""What every method of adaptation has in common: a student, a batch of both domains, and losses phase by phase."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

PARTS = ("encoder", "head", "objective")
"""Whose weights a phase may train: the student's image encoder, its task head, the objective's own modules."""


class Student(nn.Module):
    """The image encoder f and the task head h: what is trained, scored and shipped (Sec. III.A)."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        """Join an encoder, images (B, 3, H, W) to features (B, D), and a head, features to logits (B, C)."""
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, C) of images (B, 3, H, W)."""
        logits: Tensor = self.head(self.encoder(images))
        return logits


@dataclass(frozen=True)
class DomainBatch:
    """What one iteration sees of the two domains.

    Attributes:
        source_images: (S, 3, H, W), floating point.
        source_labels: (S,), int64.
        target_images: (T, 3, H, W), weakly augmented.
        target_positions: (T,), int64: each image's place in the target's training set.
        target_strong_images: (T, 3, H, W), the same images strongly augmented, where the objective asks for them.
    """

    source_images: Tensor
    source_labels: Tensor
    target_images: Tensor
    target_positions: Tensor
    target_strong_images: Tensor | None = None


class TargetBatch(NamedTuple):
    """A batch of a pass over the whole target training set: images (T, 3, H, W), positions (T,) int64."""

    images: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Phase:
    """One optimiser step: what to minimise, and whose weights may move.

    Attributes:
        total: 0-d, what to call `backward` on.
        terms: its parts by name, 0-d, for the log.
        trains: which of `PARTS` the step updates; the gradients of the others are dropped.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    trains: tuple[str, ...] = PARTS


class Objective(nn.Module):
    """A method of adaptation: everything of it that is not the training loop.

    Each iteration the loop draws a `DomainBatch` and takes one optimiser step for every phase:

        for phase in objective.phases(student, batch, iteration=t, max_iterations=n):
            optimizer.zero_grad()
            phase.total.backward()
            ...                      # drop the gradients of the parts that phase.trains leaves out
            optimizer.step()

    A phase is computed when the loop asks for it, so a later one sees the weights that an earlier one left.
    Modules of an objective (domain discriminators, second heads) are its own parameters: give them to the optimiser.
    """

    needs_strong_images: bool = False
    """Whether `DomainBatch.target_strong_images` must be there."""

    needs_target_pass: bool = False
    """Whether the loop calls `refresh`, by default before the first iteration and once an epoch of the target."""

    def task_head(self, feature_dim: int, classes: int) -> nn.Module | None:
        """A head of the method's own, features (B, feature_dim) to logits (B, classes); None if any will do."""
        return None

    def refresh_due(self, iteration: int, *, iterations_per_epoch: int, max_iterations: int) -> bool:
        """Whether the loop calls `refresh` before this iteration; an epoch is one pass over the target."""
        return self.needs_target_pass and iteration % iterations_per_epoch == 0

    def refresh(self, student: Student, target: Iterable[TargetBatch]) -> None:
        """Look at the whole target training set: pseudo-labels, class estimates. Called without gradients."""

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield the phases of this iteration, which counts from 0."""
        raise NotImplementedError
