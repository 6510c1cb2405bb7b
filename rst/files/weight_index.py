"""The distribution of tensors over a model folder's files, and its index, in the format of transformers and PEFT."""

import json
import re
from collections.abc import Iterable, Mapping

import torch

from rst.errors import ConfigError
from rst.files.safetensors_writer import TensorSpec
from rst.files.weight_names import WeightNames

LARGEST_SHARD = "5GB"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_size(size: int | str) -> int:
    """Return the bytes of `5GB` (10^9 bytes each), `5GiB` (2^30) or a plain number. Raises `ConfigError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B)?", str(size).strip().upper())
    amount = float(found[1]) * _UNITS.get(found[2] or "", 0) if found else 0
    if amount < 1:
        raise ConfigError(f"max_shard_size={size!r}: must be 5GB, 500MB, 2GiB or the like, or a number of bytes")
    return int(amount)


def bytes_of(specs: Iterable[TensorSpec]) -> int:
    """Return the bytes of all elements."""
    return sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in specs)


def plan_shards(specs: Mapping[str, TensorSpec], largest: int, files: WeightNames) -> dict[str, list[str]]:
    """Distribute tensors over files, in their order.

    Args:
        specs: dtype and shape by name.
        largest: most bytes of tensors in one file; only a single tensor may exceed it.
        files: the file names.

    Returns:
        Names of tensors by file name: one `model.safetensors`, or `model-00001-of-00003.safetensors` and so on.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + bytes_of([spec]) > largest:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_of([spec])
    if len(shards) == 1:
        return {files.single: shards[0]}
    return {files.shard(number, len(shards)): names for number, names in enumerate(shards, 1)}


def index_text(shards: Mapping[str, list[str]], total: int) -> str:
    """Return the text of an index of shards; `total` is the bytes of all tensors."""
    weight_map = {name: file for file, names in shards.items() for name in names}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
