"""Endless batches of crops, each determined by seed and number: the same after an interruption, with any workers."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from examples.segmentation.classes import IGNORED, Labels
from examples.segmentation.domains import Domain, Scene
from examples.segmentation.rare_classes import RareClassSampler, has_enough

Size = tuple[int, int]
"""Width and height."""

TRIES = 10
"""Crops drawn until one is acceptable."""

LARGEST_SHARE = 0.75
"""A source crop that one class fills this far is drawn again, as in DAFormer; with rare classes as well."""

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
"""ImageNet's."""


@dataclass(frozen=True)
class SceneBatch:
    """What one iteration sees.

    Attributes:
        source_images: (B, 3, H, W), normalised.
        source_labels: (B, H, W), int64, 255 where there is none.
        target_images: (B, 3, H, W), normalised.
        seed: of everything random that is done with the batch later.
    """

    source_images: Tensor
    source_labels: Tensor
    target_images: Tensor
    seed: str

    def to(self, device: torch.device) -> "SceneBatch":
        """The same batch on a device."""
        moved = (part.to(device) for part in (self.source_images, self.source_labels, self.target_images))
        return SceneBatch(*moved, seed=self.seed)


def normalise(image: NDArray[np.uint8]) -> Tensor:
    """An RGB picture (H, W, 3) as a normalised tensor (3, H, W)."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - MEAN) / STD


def read_image(scene: Scene, size: Size) -> NDArray[np.uint8]:
    """A scene's picture (H, W, 3), resized."""
    with Image.open(scene.image) as image:
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))


def read_labels(domain: Domain, scene: Scene, size: Size) -> Labels:
    """A scene's train ids (H, W), resized to the nearest."""
    labels = Image.fromarray(domain.read_labels(scene))
    return np.asarray(labels.resize(size, Image.Resampling.NEAREST))


class SceneBatches(Dataset[SceneBatch]):
    """Batch `number` of both domains, crops and flips included, as a function of the seed and the number."""

    def __init__(
        self,
        source: Domain,
        target: Domain,
        root: Path,
        *,
        source_size: Size,
        target_size: Size,
        crop: int,
        batch_size: int,
        seed: int,
        sampler: RareClassSampler | None,
        min_pixels: int,
    ) -> None:
        """Draw from both training splits.

        Args:
            source: has labels.
            target: its labels are not read.
            root: folder of both.
            source_size: to which source scenes are resized before cropping; width and height.
            target_size: the same for target scenes.
            crop: side of the square crops.
            batch_size: crops of each domain.
            seed: of the run.
            sampler: of the source's scenes; all alike where there is none.
            min_pixels: pixels of the sampler's class that a crop should have.
        """
        self._source, self._sampler, self._min_pixels = source, sampler, min_pixels
        self._scenes = source.scenes(root, "train"), target.scenes(root, "train")
        self._sizes = source_size, target_size
        self._crop, self._batch_size, self._seed = crop, batch_size, seed

    def __getitem__(self, number: int) -> SceneBatch:
        """Batch `number`, from 0."""
        seeds = [f"{self._seed}/{number}/{slot}" for slot in range(self._batch_size)]
        sources = [self._source_crop(random.Random(f"{seed}/source")) for seed in seeds]
        targets = [self._target_crop(random.Random(f"{seed}/target")) for seed in seeds]
        return SceneBatch(
            torch.stack([image for image, _ in sources]),
            torch.stack([labels for _, labels in sources]),
            torch.stack(targets),
            seed=f"{self._seed}/{number}",
        )

    def iterate(self, first: int, last: int, *, workers: int = 0) -> Iterator[SceneBatch]:
        """Batches `first` to `last - 1`, made ahead of time by worker processes if there are any."""
        generator = torch.Generator()  # leaves the global one alone
        return iter(
            DataLoader(self, batch_size=None, sampler=range(first, last), num_workers=workers, generator=generator)
        )

    def _source_crop(self, chance: random.Random) -> tuple[Tensor, Tensor]:
        scenes = self._scenes[0]
        number, wanted = self._sampler.draw(chance) if self._sampler else (chance.randrange(len(scenes)), None)
        scene, size = scenes[number], self._sizes[0]
        image, labels = read_image(scene, size), read_labels(self._source, scene, size)
        for _ in range(TRIES):
            window = self._varied_window(labels, size, chance)
            if wanted is None or has_enough(labels[window], wanted, self._min_pixels):
                break
        image, labels = image[window], labels[window]
        if chance.random() < 0.5:
            image, labels = image[:, ::-1], labels[:, ::-1]
        return normalise(image), torch.from_numpy(labels.astype(np.int64))

    def _target_crop(self, chance: random.Random) -> Tensor:
        size = self._sizes[1]
        image = read_image(chance.choice(self._scenes[1]), size)[_window(size, self._crop, chance)]
        return normalise(image[:, ::-1] if chance.random() < 0.5 else image)

    def _varied_window(self, labels: Labels, size: Size, chance: random.Random) -> tuple[slice, slice]:
        """A crop in which no class fills too much, or the last of several tries."""
        for _ in range(TRIES):
            window = _window(size, self._crop, chance)
            inside = labels[window]
            counts = np.bincount(inside[inside != IGNORED])
            if (counts > 0).sum() > 1 and counts.max() < LARGEST_SHARE * counts.sum():
                break
        return window


def _window(size: Size, crop: int, chance: random.Random) -> tuple[slice, slice]:
    """A random square inside the picture, as rows and columns."""
    left, top = (chance.randint(0, max(0, side - crop)) for side in size)
    return slice(top, top + crop), slice(left, left + crop)
