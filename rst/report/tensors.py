"""The tensors of a delta as records, which `rst inspect` lists and draws."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint
from rst.delta.sparse_delta import SparseDelta

Kind = Literal["sparse", "whole", "buffer", "unchanged"]


@dataclass(frozen=True)
class TensorRecord:
    """One tensor.

    Attributes:
        name: the delta's own.
        kind: a sparse change, a tensor stored whole, a buffer stored whole, or an unchanged parameter of the base.
        shape: its shape.
        dtype: torch's name of its dtype.
        dsp: its downstream parameters.
        of: number of elements.
        density: changed share, in [0, 1]; 1 for tensors stored whole.
        overlay: number of entries stored as tuned values because no residual is exact.
        bytes: size of its arrays in memory.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    dsp: int
    of: int
    density: float
    overlay: int
    bytes: int


def tensor_records(delta: SparseDelta, base: Checkpoint | None = None) -> list[TensorRecord]:
    """List a delta's tensors in natural order of their names (numbers by value).

    With the base, unchanged parameters are listed too; other names of one tensor count once.
    """
    sparse = [
        TensorRecord(
            name=name,
            kind="sparse",
            shape=change.shape,
            dtype=_dtype_name(change.dtype),
            dsp=change.nnz,
            of=change.numel,
            density=change.density,
            overlay=change.exact_indices.numel(),
            bytes=change.nbytes,
        )
        for name, change in delta.items()
    ]
    whole = [
        _stored_whole(name, tensor, "buffer" if name in delta.buffers else "whole")
        for name, tensor in delta.dense.items()
    ]
    return sorted(
        [*sparse, *whole, *(_untouched(delta, base) if base else ())], key=lambda record: _by_number(record.name)
    )


def _untouched(delta: SparseDelta, base: Checkpoint) -> Iterator[TensorRecord]:
    changed = {name for owner in [*delta, *delta.dense] for name in delta.names_of(owner)}
    for name in base:
        tensor = base[name]
        if name not in changed and name not in base.tied and tensor.is_floating_point():
            shape = tuple(tensor.shape)
            yield TensorRecord(name, "unchanged", shape, _dtype_name(tensor.dtype), 0, tensor.numel(), 0.0, 0, 0)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `blocks.2` before `blocks.10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]{1,9})", name)]


def _stored_whole(name: str, tensor: Tensor, kind: Kind) -> TensorRecord:
    count = tensor.numel()
    dsp = 0 if kind == "buffer" else count
    return TensorRecord(name, kind, tuple(tensor.shape), _dtype_name(tensor.dtype), dsp, count, 1.0, 0, tensor.nbytes)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
