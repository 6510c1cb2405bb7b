"""One kernel launch for any number of tensors: a table of where each lies and of whose every block of the work is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorTable:
    """What a kernel reads first. It holds addresses, not tensors: these must live on, where they are.

    Attributes:
        rows: int64 of shape (tensors, columns + 2): what each tensor needs (addresses and other numbers), its elements,
            and the number of its first block.
        row_of_block: int32 of shape (blocks,).
    """

    rows: Tensor
    row_of_block: Tensor

    @property
    def blocks(self) -> int:
        """How many programs there are to launch."""
        return self.row_of_block.numel()

    @classmethod
    def build(
        cls, columns: Sequence[Sequence[int]], sizes: Sequence[int], block: int, device: torch.device
    ) -> "TensorTable":
        """Divide tensors into blocks of so many elements; the last of each is shorter.

        Args:
            columns: numbers in [-2^63, 2^63), one of each column for every tensor.
            sizes: elements of each tensor. An empty one has no blocks.
            block: elements.
            device: where the kernels run.
        """
        counts = -(-np.array(sizes, dtype=np.int64) // block)
        firsts = np.cumsum(counts) - counts
        rows = np.stack([*(np.array(column, dtype=np.int64) for column in (*columns, sizes)), firsts], axis=1)
        row_of_block = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
        return cls(_to(rows, device), _to(row_of_block, device))

    def sums(self, by_block: Tensor) -> list[int]:
        """Add up a number of each block, shape (blocks,), to one for each tensor. The host waits for them."""
        upto = torch.cat([by_block.new_zeros(1, dtype=torch.int64), by_block.cumsum(0)]).cpu()
        firsts = torch.cat([self.rows[:, -1].cpu(), torch.tensor([self.blocks])])
        return upto[firsts].diff().tolist()


def _to(array: "np.ndarray[Any, Any]", device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # pragma: no cover  (CUDA: the host does not wait)
