"""Images of one domain with their labels, as a torch dataset: from image files or from arrays in memory."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset


class DomainDataset(Dataset[tuple[Any, int]]):
    """Pairs of an image and its label; `labels[i]` is the label of item i."""

    def __init__(self, labels: Sequence[int], transform: Callable[[Any], Any] | None) -> None:
        """Keep the labels, class numbers from 0, and what to apply to each PIL image."""
        self.labels = list(labels)
        self.transform = transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The transformed image and its label."""
        image = self.image(index)
        return (image if self.transform is None else self.transform(image)), self.labels[index]

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The image as stored, untransformed."""


class ImageFiles(DomainDataset):
    """Image files, opened when asked for and turned to RGB."""

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], transform: Callable[[Any], Any] | None = None
    ) -> None:
        """Pair each path with its label."""
        super().__init__(labels, transform)
        self.paths = list(paths)

    def image(self, index: int) -> Image.Image:
        """Open the image file."""
        with Image.open(self.paths[index]) as image:
            rgb: Image.Image = image.convert("RGB")
        return rgb


class ImageArrays(DomainDataset):
    """Images (N, H, W) or (N, H, W, 3) of dtype uint8, held in memory."""

    def __init__(
        self,
        images: np.ndarray[Any, Any],
        labels: Sequence[int],
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        """Pair each image with its label."""
        super().__init__(labels, transform)
        self.images = images

    def image(self, index: int) -> Image.Image:
        """Wrap the array as a PIL image: grey (H, W) or RGB (H, W, 3)."""
        return Image.fromarray(self.images[index])
