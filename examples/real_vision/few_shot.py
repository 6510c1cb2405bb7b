"""Few-shot PACS: a few labelled images per class, and held-out ones for model selection and scores."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from examples.uda.benchmarks.pacs import PACS

PIXELS = 96
TRAIN, VALIDATION, TEST = 20, 10, 60
"""Images of each class. The test images are the same in every run; the seed decides the others."""

Labelled = tuple[Tensor, Tensor]
"""Images, float32 of shape (n, 3, PIXELS, PIXELS) in [-1, 1], and labels, int64 of shape (n,)."""


@dataclass(frozen=True)
class FewShot:
    """One domain's images: disjoint parts."""

    train: Labelled
    validation: Labelled
    test: Labelled


def few_shot(root: Path, domain: str, seed: int) -> FewShot:
    """Draw the training and validation images of a domain ("P", "A", "C" or "S") of PACS below `root`."""
    labels = _labels(root, domain)
    fixed, drawn = np.random.default_rng(0), np.random.default_rng([1, seed])
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for number in range(len(PACS.classes)):
        own = fixed.permutation(np.flatnonzero(labels == number))
        test, rest = own[:TEST], drawn.permutation(own[TEST:])
        for part, chosen in zip(parts, (rest[:TRAIN], rest[TRAIN : TRAIN + VALIDATION], test), strict=True):
            part.extend(chosen.tolist())
    return FewShot(*(_images(root, domain, part) for part in parts))


@lru_cache
def _labels(root: Path, domain: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if problems := PACS.problems(root, domain, counts=True):
        raise SystemExit("\n".join([*problems, PACS.layout, PACS.download]))
    return np.array(PACS.dataset(root, domain, "train", role="target").labels)


def _images(root: Path, domain: str, chosen: list[int]) -> Labelled:
    dataset = PACS.dataset(root, domain, "train", role="target")
    pixels = [resize(pil_to_tensor(dataset.image(index)), [PIXELS, PIXELS], antialias=True) for index in chosen]
    labels = torch.tensor([dataset.labels[index] for index in chosen])
    return torch.stack(pixels).float().div_(127.5).sub_(1.0), labels
