"""Scores on the target domain's test set: accuracy, accuracy of each class, and scores that need no label."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from cmkd import VALIDATORS
from examples.uda.image_pass import ImagePass

VALIDATED_IMAGES = 2_000
"""Validators see at most this many images, evenly spaced: SND compares every pair."""


@dataclass(frozen=True)
class Scores:
    """One point of the curve, in per cent.

    Attributes:
        accuracy: what the benchmark reports.
        per_class: accuracy of every class number that the test set has.
        validators: label-free scores by name; higher is better.
    """

    accuracy: float
    per_class: dict[int, float]
    validators: dict[str, float]


@torch.no_grad()
def evaluate(
    classify: Callable[[Tensor], Tensor], test: ImagePass, accelerator: Accelerator, *, mean_per_class: bool
) -> Scores:
    """Classify the test set, shared among the processes.

    Args:
        classify: images (B, 3, H, W) to logits (B, C).
        test: this process's share of the test images.
        accelerator: gathers the shares.
        mean_per_class: whether `accuracy` is the mean of the classes' accuracies (VisDA-2017) or that of the images.
    """
    shares = []
    for batch in test:
        with accelerator.autocast():
            shares.append(classify(batch.images).float().cpu())
    logits = torch.cat(gather_object([torch.cat(shares)]))
    labels = torch.cat(gather_object([test.labels]))

    right = logits.argmax(dim=1) == labels
    per_class = {label: 100 * right[labels == label].float().mean().item() for label in labels.unique().tolist()}
    accuracy = sum(per_class.values()) / len(per_class) if mean_per_class else 100 * right.float().mean().item()
    spaced = logits[:: -(-len(logits) // VALIDATED_IMAGES)]
    return Scores(accuracy, per_class, {name: float(score(spaced)) for name, score in VALIDATORS.items()})
