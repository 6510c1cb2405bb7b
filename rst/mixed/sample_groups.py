"""Which samples of a batch belong to which adapter, and what the adapters' changes are over all samples at once."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_WORTH_COPIES = 512  # rows an adapter, on the average


class SampleGroups:
    """The samples of each adapter, as indices into dimension 0.

    Attributes:
        size: samples of the batch.
        names: the adapter of each.
        members: samples of each adapter, in order.
        most_copies: samples of an adapter for each of which its index may be copied into a joint one.
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
        """Adapter to its samples, shape (samples,), int64."""
        if device not in self._on_device:
            self._on_device[device] = {
                name: torch.tensor(samples, device=device) for name, samples in self.members.items()
            }
        return self._on_device[device]

    def are_large(self, rows: int) -> bool:
        """Return whether an adapter has so many of the rows of a matrix product that tuned weights are made for it.

        A copy of the weights costs as much as some rows' products; the sparse sums cost a share of all of them.
        """
        return rows >= _WORTH_COPIES * len(self.members)

    def of_samples(self, changes: Mapping[str, T]) -> list[tuple[int, T]]:
        """The samples that have a change, each with it."""
        return [(sample, changes[name]) for sample, name in enumerate(self.names) if name in changes]

    def once(self, key: Hashable, version: Hashable, build: Callable[[], T]) -> T:
        """What `build` returns, kept for as long as `version` is the same."""
        known = self._joint.get(key)
        if known is None or known[0] != version:
            known = self._joint[key] = version, build()
        return known[1]  # type: ignore[return-value]
