"""The images of one domain in order, without augmentation, held in memory if they fit."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from cmkd import TargetBatch
from examples.uda.benchmarks import DomainDataset

BATCH_SIZE = 64
MEMORY = 2**29
"""Bytes up to which the transformed images stay in memory: digits and fakes do, 224 px do not."""


class ImagePass:
    """A pass in order over a data set of fixed transform, or over every `step`-th image of it."""

    def __init__(
        self, dataset: DomainDataset, device: torch.device, *, workers: int, start: int = 0, step: int = 1
    ) -> None:
        """Take every `step`-th image from number `start` on to the device."""
        self.positions = torch.arange(start, len(dataset), step)
        self.labels = torch.tensor(dataset.labels)[self.positions]
        self._dataset = Subset(dataset, self.positions.tolist())
        self._device = device
        self._workers = workers
        self._held: list[Tensor] | None = None

    def __iter__(self) -> Iterator[TargetBatch]:
        """Images (B, 3, H, W) and their positions (B,) in the data set."""
        all_images = self._held if self._held is not None else self._read()
        for images, positions in zip(all_images, self.positions.split(BATCH_SIZE), strict=True):
            yield TargetBatch(images.to(self._device), positions.to(self._device))

    def _read(self) -> Iterator[Tensor]:
        loader = DataLoader(
            self._dataset,
            batch_size=BATCH_SIZE,
            num_workers=self._workers,
            collate_fn=_stack_images,
            generator=torch.Generator(),  # leaves the global one alone
        )
        first = self._dataset[0][0]
        if first.nbytes * len(self._dataset) > MEMORY:
            return iter(loader)
        self._held = list(loader)
        return iter(self._held)


def _stack_images(pairs: list[tuple[Tensor, int]]) -> Tensor:
    return torch.stack([image for image, _ in pairs])
