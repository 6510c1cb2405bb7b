"""Eq. 17 with plain tensor operations: in chunks that stay in cache, on one worker thread a core. Works everywhere."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

# On a CPU below the size from which torch splits one operation over threads (the workers are the threads here), and
# with its difference and mask inside a second-level cache.
_CPU_CHUNK = 3 << 13
# On an accelerator large enough that launches do not show, small enough that temporaries do not either.
_DEVICE_CHUNK = 1 << 24
# What a worker takes at a time.
_PIECE = 32 * _CPU_CHUNK


def project_eager(pairs: Iterable[tuple[Tensor, Tensor]], threshold: float) -> Tensor:
    """Project 1-D contiguous `(wt, w0)` in place. Returns the number of weights kept, an int64 tensor of shape ()."""
    kept = torch.zeros((), dtype=torch.int64)
    pieces: list[tuple[Tensor, Tensor]] = []
    for weight, origin in pairs:
        if weight.device.type == "cpu":
            pieces += zip(torch.split(weight, _PIECE), torch.split(origin, _PIECE), strict=True)
        else:
            kept = kept.to(weight.device) + _project_chunks(weight, origin, threshold, _DEVICE_CHUNK)
    return kept + sum(_project_pieces(pieces, threshold))


def _project_pieces(pieces: list[tuple[Tensor, Tensor]], threshold: float) -> Iterator[int]:
    def project_piece(piece: tuple[Tensor, Tensor]) -> int:
        with torch.no_grad():  # a setting of each thread
            return int(_project_chunks(*piece, threshold, _CPU_CHUNK))

    workers = min(torch.get_num_threads(), len(pieces))
    run = map if workers <= 1 else _pool(workers, os.getpid()).map
    return iter(run(project_piece, pieces))


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork."""
    return ThreadPoolExecutor(workers, thread_name_prefix="rst-projection")


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
