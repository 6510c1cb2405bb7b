"""Endless batches of both domains, each determined by its number: the same after an interruption, with any workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cmkd import DomainBatch
from examples.uda.benchmarks import DomainDataset


@dataclass(frozen=True)
class Shuffle:
    """An endless walk over `size` positions, reshuffled every epoch: batch `number` follows from the seed alone."""

    size: int
    batch_size: int
    seed: int

    def positions(self, number: int) -> list[int]:
        """Positions of batch `number`; one may begin in an epoch and end in the next."""
        draws = range(number * self.batch_size, (number + 1) * self.batch_size)
        epochs = range(draws[0] // self.size, draws[-1] // self.size + 1)
        order = torch.cat([_epoch_order(self.size, self.seed, epoch) for epoch in epochs])
        first = draws[0] - epochs[0] * self.size
        chosen: list[int] = order[first : first + self.batch_size].tolist()
        return chosen


@lru_cache(maxsize=8)
def _epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(_mix(seed, epoch)))


class DomainBatches(Dataset[DomainBatch]):
    """Batch `number` of both domains, augmentation included, as a function of the seed and the number.

    Of several processes each takes its share of every batch.
    """

    def __init__(
        self,
        source: DomainDataset | None,
        target: DomainDataset,
        *,
        batch_size: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """Draw from training sets; the target's transform may give two views, the weak one first.

        Without a source, its part of every batch is empty.

        Raises:
            ValueError: if the processes cannot share a batch evenly.
        """
        if batch_size % processes:
            raise ValueError(f"batch_size {batch_size} cannot be shared evenly by {processes} processes")
        self.source = source
        self.target = target
        self.seed = seed
        self.source_order = None if source is None else Shuffle(len(source), batch_size, _mix(seed, 1))
        self.target_order = Shuffle(len(target), batch_size, _mix(seed, 2))
        self.process = process
        self.processes = processes

    def __getitem__(self, number: int) -> DomainBatch:
        """Read, augment and stack."""
        share = slice(self.process, None, self.processes)
        source = [] if self.source_order is None else self.source_order.positions(number)[share]
        target = self.target_order.positions(number)[share]
        with _seeded(_mix(self.seed, 3 + self.process, number)):
            pairs = [] if self.source is None else [self.source[i] for i in source]
            views = [self.target[i][0] for i in target]
        weak, strong = zip(*views, strict=True) if isinstance(views[0], tuple) else (views, None)
        target_images = torch.stack(list(weak))
        return DomainBatch(
            source_images=torch.stack([image for image, _ in pairs]) if pairs else target_images[:0],
            source_labels=torch.tensor([label for _, label in pairs], dtype=torch.int64),
            target_images=target_images,
            target_positions=torch.tensor(target),
            target_strong_images=torch.stack(strong) if strong else None,
        )

    def iterate(self, start: int, stop: int, *, workers: int) -> Iterator[DomainBatch]:
        """Batches `start` to `stop`, made in this process or ahead of time by `workers` others."""
        loader: DataLoader[DomainBatch] = DataLoader(
            self,
            batch_size=None,  # an item is a batch
            sampler=range(start, stop),
            num_workers=workers,
            generator=torch.Generator(),  # else the loader draws from the global one, and a resumed run differs
        )
        return iter(loader)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give augmentation, which draws from torch's global generator, numbers of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _mix(*numbers: int) -> int:
    """One seed from several numbers, by numpy's own hash."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
