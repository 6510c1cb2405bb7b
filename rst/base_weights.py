"""Where the pretrained weights `w0` are kept while `wt` is trained: beside it, in CPU memory, or in a mapped file."""

import tempfile
from collections.abc import Mapping

import torch
from torch import Tensor

from rst.config import BaseStorage

_ALIGNMENT = 64


def store_base(weights: Mapping[str, Tensor], storage: BaseStorage) -> dict[str, Tensor]:
    """Copy weights, same strides, to where `storage` says.

    Args:
        weights: the live tensors by name, any device.
        storage: "device" copies beside each weight; "cpu" to CPU memory, pinned for weights on a GPU; "mmap" to an
            unnamed temporary file mapped into memory, whose pages the system may drop and read again.
    """
    if storage == "mmap":
        return _map_to_file(weights)
    if storage == "cpu":
        return {name: _to_cpu(weight.detach()) for name, weight in weights.items()}
    return {name: weight.detach().clone() for name, weight in weights.items()}


def _to_cpu(weight: Tensor) -> Tensor:
    if weight.device.type == "cpu":
        return weight.clone()
    copy = torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)
    return copy.copy_(weight)


def _map_to_file(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sizes = {name: weight.numel() * weight.element_size() for name, weight in weights.items()}
    padded = {name: -(-size // _ALIGNMENT) * _ALIGNMENT for name, size in sizes.items()}
    with tempfile.NamedTemporaryFile(prefix="rst-base-") as file:  # unlinked at once; the mapping keeps it alive
        total = max(sum(padded.values()), 1)
        file.truncate(total)
        memory = torch.from_file(file.name, shared=True, size=total, dtype=torch.uint8)
    mapped, offset = {}, 0
    for name, weight in weights.items():
        view = memory[offset : offset + sizes[name]].view(weight.dtype)
        mapped[name] = view.as_strided(weight.shape, _dense_strides(weight)).copy_(weight.detach())
        offset += padded[name]
    return mapped


def _dense_strides(weight: Tensor) -> tuple[int, ...]:
    """Strides of a copy without gaps that keeps the memory order, as `clone` gives."""
    return torch.empty_like(weight, device="meta").stride()
