"""Which samples of a batch belong to which adapter."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


class SampleGroups:
    """The samples of each adapter, as indices into dimension 0.

    Attributes:
        size: samples of the batch.
    """

    def __init__(self, adapter_names: Sequence[str]) -> None:
        """Group the samples by their adapters' names."""
        self.size = len(adapter_names)
        self._samples: defaultdict[str, list[int]] = defaultdict(list)
        for sample, name in enumerate(adapter_names):
            self._samples[name].append(sample)
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    def on(self, device: torch.device) -> dict[str, Tensor]:
        """Adapter to its samples, shape (samples,), int64."""
        if device not in self._on_device:
            self._on_device[device] = {
                name: torch.tensor(samples, device=device) for name, samples in self._samples.items()
            }
        return self._on_device[device]

    def update(
        self, output: Tensor, adapters: Iterator[str] | Sequence[str], add: Callable[[str, Tensor], None]
    ) -> None:
        """Let `add(adapter, part)` change in place the samples of each of `adapters` that the batch has."""
        samples = self.on(output.device)
        for adapter in dict.fromkeys(adapters):
            if adapter in samples:
                # Out and back in, since an index of indices is a copy, which `add` would change in vain.
                part = output.index_select(0, samples[adapter])
                add(adapter, part)
                output.index_copy_(0, samples[adapter], part)
