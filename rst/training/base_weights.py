"""Storage of pretrained weights `w0` while `wt` is trained: beside it, in CPU memory, or in a memory-mapped file."""

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from rst.config import CopyStorage
from rst.delta.parameter_delta import check_like
from rst.errors import ConfigError
from rst.numerics.dtypes import NAME_OF_DTYPE
from rst.numerics.exactness import is_plain

_ALIGNMENT = 64


class BaseWeights(Mapping[str, Tensor]):
    """Copies of the pretrained weights by name."""

    def __init__(self, weights: Mapping[str, Tensor], storage: CopyStorage) -> None:
        """Copy `weights`, with the same strides, to where `storage` says.

        Args:
            weights: the live tensors by name, any device.
            storage: "device" copies beside each weight; "cpu" to CPU memory, pinned for weights on CUDA; "mmap" to an
                unnamed temporary file mapped into memory, whose pages the system may drop and read again.
        """
        self._storage = storage
        if storage == "mmap":
            mapped = {name: one for name, one in weights.items() if is_plain(one) and one.dtype in NAME_OF_DTYPE}
            others = {name: _to_cpu(weight.detach()) for name, weight in weights.items() if name not in mapped}
            self._copies = {**_map_to_file(mapped), **others}
        elif storage == "cpu":
            self._copies = {name: _to_cpu(weight.detach()) for name, weight in weights.items()}
        else:
            self._copies = {name: weight.detach().clone() for name, weight in weights.items()}

    def __getitem__(self, name: str) -> Tensor:
        """Return w0 of one parameter, on the device where it is stored."""
        return self._copies[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._copies)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._copies)

    def on_device_of(self, live: Mapping[str, Tensor], *, move: bool = True) -> Mapping[str, Tensor]:
        """Return a view of w0 that copies each tensor to the device of its weight on access, unless `move` is False.

        With "device" storage the copy stays there. Access raises `ParameterMismatchError` if the weight's shape or
        dtype has changed.
        or dtype has changed since.
        """
        return _OnDeviceOf(live, self._copies, keeps=self._storage == "device", move=move)

    def take(self, names: Iterable[str] | None = None) -> None:
        """Prepare copies of w0 before these weights (None: all) change. This class always has copies."""

    def settle(self, names: Iterable[str] | None = None) -> None:
        """Drop copies that are not needed until the next step, after a selection. This class drops none."""

    def load(self, copies: Mapping[str, Tensor]) -> None:
        """Replace w0."""
        for name, copy in self._copies.items():
            if is_plain(copy):
                copy.copy_(copies[name])
            else:  # may have another number of values
                self._copies[name] = copies[name].detach().clone()


class _OnDeviceOf(Mapping[str, Tensor]):
    def __init__(self, live: Mapping[str, Tensor], copies: dict[str, Tensor], *, keeps: bool, move: bool) -> None:
        self._live, self._copies, self._keeps, self._move = live, copies, keeps, move

    def __getitem__(self, name: str) -> Tensor:
        weight, stored = self._live[name], self._copies[name]
        check_like(name, weight, stored)
        if not self._move:
            return stored
        there = stored.to(weight.device, non_blocking=True)
        if self._keeps:  # the model went to another device, and stays
            self._copies[name] = there
        return there

    def __iter__(self) -> Iterator[str]:
        return iter(self._copies)

    def __len__(self) -> int:
        return len(self._copies)


def _to_cpu(weight: Tensor) -> Tensor:
    if weight.device.type == "cpu" or weight.is_meta:
        return weight.clone()
    copy = torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)  # pragma: no cover  (CUDA)
    return copy.copy_(weight)  # pragma: no cover  (CUDA)


def _map_to_file(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sizes = {name: weight.nbytes for name, weight in weights.items()}
    padded = {name: -(-size // _ALIGNMENT) * _ALIGNMENT for name, size in sizes.items()}
    with tempfile.TemporaryFile(prefix="rst-base-") as file:  # without a name; the mapping keeps it alive
        total = max(sum(padded.values()), 1)
        _reserve(file.fileno(), total)
        memory = torch.frombuffer(mmap.mmap(file.fileno(), total), dtype=torch.uint8)
    mapped, offset = {}, 0
    for name, weight in weights.items():
        view = memory[offset : offset + sizes[name]].view(weight.dtype)
        mapped[name] = view.as_strided(weight.shape, _dense_strides(weight)).copy_(weight.detach())
        offset += padded[name]
    return mapped


def _reserve(descriptor: int, size: int) -> None:
    """Set a file's size and reserve the disk space: writing to mapped memory without space kills the process."""
    try:
        getattr(os, "posix_fallocate", _set_size)(descriptor, 0, size)
    except OSError as error:
        raise ConfigError(
            f'base_storage="mmap" needs {size:,} bytes ({error.strerror}); set TMPDIR to a folder with enough space',
            file=tempfile.gettempdir(),
        ) from error


def _set_size(descriptor: int, _: int, size: int) -> None:
    os.truncate(descriptor, size)


def _dense_strides(weight: Tensor) -> tuple[int, ...]:
    """Return the strides of a copy without gaps that keeps the memory order, like those of `clone`."""
    return torch.empty_like(weight, device="meta").stride()
