"""Reading and writing elements of a tensor at flat row-major positions, bit for bit, whatever its strides."""

import torch
from torch import Tensor


def read_at(tensor: Tensor, positions: Tensor) -> Tensor:
    """Return the elements at `positions`, integers of shape (n,), of a tensor of any shape, as a copy of shape (n,)."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        return tensor.view(-1)[positions]
    return tensor[torch.unravel_index(positions.long(), tensor.shape)]


def write_at_(tensor: Tensor, positions: Tensor, elements: Tensor) -> None:
    """Replace the elements at distinct `positions` by `elements` of the same dtype; both of shape (n,)."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        tensor.view(-1)[positions] = elements
    else:
        tensor[torch.unravel_index(positions.long(), tensor.shape)] = elements
