"""Rare-class sampling (DAFormer, Hoyer et al. 2022): source images are drawn by class, rare classes more often."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.segmentation.classes import CLASSES, IGNORED
from examples.segmentation.domains import Domain, Scene

Pixels = NDArray[np.int64]
"""Pixels of each class in each scene, (scenes, classes)."""


def count_pixels(domain: Domain, scenes: Sequence[Scene], cache: Path) -> Pixels:
    """Count every class in every scene, once: the counts are kept in a JSON file.

    Args:
        domain: reads the labels.
        scenes: of one split.
        cache: the file; it is made anew where it lists other scenes.
    """
    names = [scene.image.name for scene in scenes]
    if cache.exists():
        kept = json.loads(cache.read_text())
        if kept["names"] == names:
            return np.asarray(kept["pixels"], dtype=np.int64)
    pixels = np.stack([np.bincount(domain.read_labels(scene).ravel(), minlength=256) for scene in scenes])
    pixels = pixels[:, : len(CLASSES)].astype(np.int64)
    cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cache.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"names": names, "pixels": pixels.tolist()}))
    unfinished.replace(cache)
    return pixels


def class_chances(pixels: Pixels, temperature: float) -> NDArray[np.float64]:
    """How often to draw an image for each class: `softmax((1 - share) / temperature)` over the classes that occur."""
    total = pixels.sum(axis=0)
    scores = np.where(total > 0, (1 - total / total.sum()) / temperature, -np.inf)
    weights = np.exp(scores - scores.max())
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances


class RareClassSampler:
    """Draws a class by its rarity, then a scene that has enough of it."""

    def __init__(self, pixels: Pixels, temperature: float, min_pixels: int) -> None:
        """Prepare the chances.

        Args:
            pixels: of each class in each scene.
            temperature: the lower, the more often rare classes are drawn (DAFormer: 0.01).
            min_pixels: from how many pixels on a scene has a class (DAFormer: 3,000); from one where no scene has more.
        """
        self._chances = class_chances(pixels, temperature).tolist()
        enough = [np.flatnonzero(column >= min_pixels) for column in pixels.T]
        some = [np.flatnonzero(column) for column in pixels.T]
        self._scenes = [(a if len(a) else b).tolist() for a, b in zip(enough, some, strict=True)]

    def draw(self, chance: random.Random) -> tuple[int, int]:
        """The number of a scene, and the class that it was drawn for."""
        (label,) = chance.choices(range(len(self._chances)), self._chances)
        return chance.choice(self._scenes[label]), label


def has_enough(labels: NDArray[np.uint8], label: int, min_pixels: int) -> bool:
    """Whether a crop's labels have at least so many pixels of the class."""
    assert label != IGNORED
    return int((labels == label).sum()) >= min_pixels
