"""Eq. 17 with plain tensor operations: in chunks that stay in cache, on all cores. Works everywhere."""

from collections.abc import Iterable

import torch
from torch import Tensor

from rst.worker_pool import CHUNK, PIECE, on_all_cores

# On an accelerator large enough that launches do not show, small enough that temporaries do not either.
_DEVICE_CHUNK = 1 << 24


def project_eager(pairs: Iterable[tuple[Tensor, Tensor]], threshold: float) -> Tensor:
    """Project 1-D contiguous `(wt, w0)` in place. Returns the number of weights kept, an int64 tensor of shape ()."""
    kept = torch.zeros((), dtype=torch.int64)
    pieces: list[tuple[Tensor, Tensor]] = []
    for weight, origin in pairs:
        if weight.device.type == "cpu":
            pieces += zip(torch.split(weight, PIECE), torch.split(origin, PIECE), strict=True)
        else:
            kept = kept.to(weight.device) + _project_chunks(weight, origin, threshold, _DEVICE_CHUNK)
    return kept + sum(on_all_cores(lambda piece: int(_project_chunks(*piece, threshold, CHUNK)), pieces))


def _project_chunks(weight: Tensor, origin: Tensor, threshold: float, size: int) -> Tensor:
    size = min(size, weight.numel())
    difference = torch.empty(size, dtype=weight.dtype, device=weight.device)
    reset = torch.empty(size, dtype=torch.bool, device=weight.device)
    kept = torch.zeros((), dtype=torch.int64, device=weight.device)
    if size == 0:
        return kept
    for part, part_origin in zip(torch.split(weight, size), torch.split(origin, size), strict=True):
        part_difference, part_reset = difference[: part.numel()], reset[: part.numel()]
        torch.sub(part, part_origin, out=part_difference).abs_()
        torch.le(part_difference, threshold, out=part_reset)
        torch.where(part_reset, part_origin, part, out=part)
        kept += part.numel() - part_reset.count_nonzero()
    return kept
