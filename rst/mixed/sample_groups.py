"""Which samples of a batch belong to which adapter, and the adapters' changes over all samples at once."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_WORTH_COPIES = 256  # rows per adapter, on average


class SampleGroups:
    """The samples of each adapter, as indices into dimension 0.

    Attributes:
        size: the number of samples in the batch.
        names: the adapter of each sample.
        members: the samples of each adapter, in order.
        most_copies: the largest number of samples for which an adapter's index may be copied into a joint one.
    """

    def __init__(self, adapter_names: Sequence[str], most_copies: int) -> None:
        """Group the samples by their adapters' names."""
        self.most_copies = most_copies
        self.names = tuple(adapter_names)
        self.size = len(self.names)
        self.members: dict[str, list[int]] = {}
        for sample, name in enumerate(adapter_names):
            self.members.setdefault(name, []).append(sample)
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}
        self._joint: dict[Hashable, tuple[Hashable, object]] = {}

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the samples of each adapter, shape (samples,), int64."""
        if device not in self._on_device:
            self._on_device[device] = {
                name: torch.tensor(samples, device=device) for name, samples in self.members.items()
            }
        return self._on_device[device]

    def are_large(self, rows: int) -> bool:
        """Return whether an adapter has so many of the rows of a matrix product that it gets a product of its own.

        A product of few rows is slow, as it reads all weights; the sparse sums cost a share of the joint product.
        """
        return rows >= _WORTH_COPIES * len(self.members)

    def of_samples(self, changes: Mapping[str, T]) -> list[tuple[int, T]]:
        """Return the samples that have a change, each with its change."""
        return [(sample, changes[name]) for sample, name in enumerate(self.names) if name in changes]

    def once(self, key: Hashable, version: Hashable, build: Callable[[], T]) -> T:
        """Return what `build` returns, which is kept as long as `version` stays the same."""
        known = self._joint.get(key)
        if known is None or known[0] != version:
            known = self._joint[key] = version, build()
        return known[1]  # type: ignore[return-value]
