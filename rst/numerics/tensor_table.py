"""One kernel launch for any number of tensors: a table with the address of each, and the tensor of each block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorTable:
    """The table that a kernel reads first. It holds addresses, not tensors: these must stay alive and in place.

    Attributes:
        rows: int64 of shape (tensors, columns + 2): the data of each tensor (addresses and other numbers), its number
            of elements, and its first block.
        row_of_block: int32 of shape (blocks,).
    """

    rows: Tensor
    row_of_block: Tensor

    @property
    def blocks(self) -> int:
        """Return the number of programs to launch."""
        return self.row_of_block.numel()

    @classmethod
    def build(
        cls, columns: Sequence[Sequence[int]], sizes: Sequence[int], block: int, device: torch.device
    ) -> "TensorTable":
        """Divide tensors into blocks of `block` elements; the last block of each is shorter.

        Args:
            columns: numbers in [-2^63, 2^63), one per column and tensor.
            sizes: number of elements of each tensor. An empty one has no blocks.
            block: number of elements per block.
            device: device of the kernels.
        """
        counts = -(-np.array(sizes, dtype=np.int64) // block)
        firsts = np.cumsum(counts) - counts
        rows = np.stack([*(np.array(column, dtype=np.int64) for column in (*columns, sizes)), firsts], axis=1)
        row_of_block = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
        return cls(_to(rows, device), _to(row_of_block, device))

    def sums(self, by_block: Tensor) -> list[int]:
        """Sum a number per block, shape (blocks,), to one per tensor. The host waits for the result."""
        upto = torch.cat([by_block.new_zeros(1, dtype=torch.int64), by_block.cumsum(0)]).cpu()
        firsts = torch.cat([self.rows[:, -1].cpu(), torch.tensor([self.blocks])])
        return upto[firsts].diff().tolist()


def _to(array: "np.ndarray[Any, Any]", device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # pragma: no cover  (CUDA: the host does not wait)
