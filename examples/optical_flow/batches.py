"""Endless training batches, each determined by its number alone: the same after an interruption, with any workers."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from examples.optical_flow.augmentation import SparseFlowAugmentation
from examples.optical_flow.kitti import FlowPair, KittiPairs
from examples.uda.stream import Shuffle


class FlowBatches(Dataset[FlowPair]):
    """Batch `number` as a function of the seed and the number; its tensors have a leading dimension B."""

    def __init__(
        self,
        pairs: KittiPairs,
        positions: Sequence[int],
        augment: SparseFlowAugmentation,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        """Draw from the pairs at these positions, reshuffled every epoch."""
        self.pairs = pairs
        self.positions = positions
        self.augment = augment
        self.seed = seed
        self.order = Shuffle(len(positions), batch_size, seed)

    def __getitem__(self, number: int) -> FlowPair:
        """Read, augment and stack."""
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            crops = [self.augment(self.pairs[self.positions[i]]) for i in self.order.positions(number)]
        return FlowPair(*map(torch.stack, zip(*crops, strict=True)))

    def iterate(self, start: int, stop: int, *, workers: int) -> Iterator[FlowPair]:
        """Batches `start` to `stop`, made in this process or ahead of time by `workers` others."""
        loader: DataLoader[FlowPair] = DataLoader(
            self,
            batch_size=None,  # an item is a batch
            sampler=range(start, stop),
            num_workers=workers,
            generator=torch.Generator(),  # else the loader draws from the global one
        )
        return iter(loader)
