"""A safetensors file written tensor by tensor, so that memory follows the largest tensor and not the file.

safetensors' own writer needs all tensors at once, and orders metadata at random.
The format: 8 bytes of header length, the header in JSON, the data.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rst.errors import CheckpointError
from rst.numerics.dtypes import HALF_BYTES, NAME_OF_COPIED
from rst.numerics.exactness import as_bytes

TensorSpec = tuple[torch.dtype, tuple[int, ...]]
_ALIGNMENT = 8
WEIGHTS_OF_TORCH = {"format": "pt"}  # transformers rejects files without it


def write_safetensors(
    path: str | os.PathLike[str],
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str] = WEIGHTS_OF_TORCH,
    also: Callable[[memoryview], object] | None = None,
) -> None:
    """Write tensors one after another; the next one is requested while one is written.

    Args:
        path: file to write.
        specs: dtype and shape by name. Readers expect wide dtypes first, for alignment: see `by_width`.
        tensors: CPU tensors, one for each entry of `specs` in the same order.
        metadata: entries of the header.
        also: receives all bytes in order, each part while it is written.

    Raises:
        CheckpointError: a dtype that the format lacks.
        OSError: the disk is full, or a similar error; the error names the file.
    """
    try:
        with Path(path).open("wb") as file, ThreadPoolExecutor(2) as threads:
            takers = [file.write, *([also] if also else [])]
            last = [threads.submit(take, memoryview(_header(specs, metadata))) for take in takers]
            for (dtype, shape), tensor in zip(specs.values(), tensors, strict=True):
                assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape)
                for done in last:
                    done.result()
                last = [threads.submit(take, as_bytes(tensor).numpy().data) for take in takers]
            for done in last:
                done.result()
    except OSError as error:
        error.filename = error.filename or os.fspath(path)  # an error of write() lacks it
        raise


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    """Return dtype and shape of each tensor, in the order that readers expect."""
    return by_width({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})


def by_width(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Order entries by falling element width, then by name, so that every tensor starts at a multiple of its width."""
    return dict(sorted(specs.items(), key=lambda item: (-item[1][0].itemsize, item[0])))


def _header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in specs.items():
        if dtype not in NAME_OF_COPIED:
            raise CheckpointError(f"safetensors has no {dtype}", parameter=name)
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        numbers = [*shape[:-1], 2 * shape[-1]] if dtype == HALF_BYTES else list(shape)
        entries[name] = {"dtype": NAME_OF_COPIED[dtype], "shape": numbers, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
