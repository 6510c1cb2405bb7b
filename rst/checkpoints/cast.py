"""A checkpoint whose floats are read in another dtype."""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint, Weights, open_checkpoint
from rst.errors import ConfigError, RSTWarning
from rst.numerics.exactness import RESIDUAL_DTYPES


def open_cast(weights: Weights, dtype: torch.dtype, key: str | None = None) -> Checkpoint:
    """Open weights whose floats of at least 16 bits are cast to `dtype` as they are read; says how many (`RSTWarning`).

    Raises:
        CheckpointError: as `open_checkpoint`.
        ConfigError: `dtype` is no float of at least 16 bits.
    """
    if dtype not in RESIDUAL_DTYPES:
        raise ConfigError(f"dtype={dtype}: choose one of {', '.join(map(str, RESIDUAL_DTYPES))}")
    opened = open_checkpoint(weights, key)
    cast = [name for name in opened if opened.outline(name).dtype in {*RESIDUAL_DTYPES} - {dtype}]
    if not cast:
        return opened
    originals = {opened.original_names[name] for name in cast}
    warnings.warn(
        f"cast {len(cast)} tensors of {opened.source} to {dtype}: the delta reproduces the cast weights bit for "
        f"bit, not those in the file",
        RSTWarning,
        stacklevel=3,
    )

    def read(original: str) -> Tensor:
        tensor = opened.read(original)
        return tensor.to(dtype) if original in originals else tensor

    outlines = {name: one for name, one in opened.outlines.items() if name not in originals}
    return replace(opened, read=read, outlines=outlines)
