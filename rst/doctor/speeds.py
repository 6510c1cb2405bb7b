"""The speed of the backends on this machine, measured in about two seconds together with that of its memory."""

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rst.delta.pcodec_stream import compress, decompress
from rst.files.budget import Budget
from rst.numerics import kernels
from rst.training.projection import Project, choose_projection
from rst.training.projection_compiled import project_compiled
from rst.training.projection_eager import project_eager

_WEIGHTS = 1 << 24
_ENTRIES = 1 << 20
_DISK_BYTES = 1 << 26
_BLOCK = 1 << 22
_SECONDS = 0.3
_TAU = 1e-6


@dataclass(frozen=True)
class Speed:
    """One measurement: the best of several rounds.

    Attributes:
        name: what was measured.
        value: the value, in `unit`.
        unit: unit of the value.
        note: what the value counts.
    """

    name: str
    value: float
    unit: str
    note: str


def memory_and_projection(device: torch.device, compiled: bool) -> list[Speed]:
    """Measure copying 16.8 million float32 weights, and Eq. 17 on as many, of which 0.1 % changed."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(_WEIGHTS, generator=generator) * 0.02
    tuned = torch.where(torch.rand(_WEIGHTS, generator=generator) < 1e-3, base + 1e-3, base)
    base, tuned = base.to(device), tuned.to(device)
    spare = torch.empty_like(base)
    speeds = [_streams("memory copy", lambda: spare.copy_(base), base, 2)]
    backends: dict[str, Project] = {"eager": project_eager}
    if compiled:
        backends["compiled"] = project_compiled
    if kernels.run_on(device):  # pragma: no cover  (CUDA)
        backends["Triton"] = choose_projection([tuned])
    for backend, project in backends.items():
        speeds.append(_streams(f"projection, {backend}", partial(project, [(tuned, base)], _TAU), base, 3))
    return speeds


def codec() -> Speed:
    """Measure unpacking a million float32 residuals from a packed delta."""
    generator = torch.Generator().manual_seed(0)
    residuals = torch.randn(_ENTRIES, generator=generator) * 1e-4
    stream = compress(residuals, [_ENTRIES])
    seconds = _best(lambda: decompress("doctor", "residuals", stream, torch.float32, Budget(stream.numel())))
    return Speed("pcodec decoding", _ENTRIES / seconds / 1e6, "M entries/s", "float32 residuals")


def disk(folder: Path) -> list[Speed]:
    """Measure writing 67 MB to an unnamed file in `folder`, fsync included, and reading it again.

    Raises:
        OSError: the folder is read-only or full.
    """
    block = os.urandom(_BLOCK)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        started = time.perf_counter()
        for _ in range(_DISK_BYTES // _BLOCK):
            file.write(block)
        os.fsync(file.fileno())
        written = time.perf_counter() - started
        dropped = _drop_cache(file.fileno())
        file.seek(0)
        buffer = bytearray(_BLOCK)
        started = time.perf_counter()
        while file.readinto(buffer):
            pass
        read = time.perf_counter() - started
    rate = _DISK_BYTES / 1e9
    source = "after asking the system to drop its cache" if dropped else "from the system's cache"
    return [
        Speed("disk write", rate / written, "GB/s", f"with fsync, in {folder}"),
        Speed("disk read", rate / read, "GB/s", source),
    ]


def _streams(name: str, work: Callable[[], object], weights: Tensor, streams: int) -> Speed:
    def synchronized() -> None:
        work()
        if weights.is_cuda:  # pragma: no cover  (CUDA)
            torch.cuda.synchronize()

    seconds = _best(synchronized)
    note = "one stream read, one written" if streams == 2 else "two streams read, one written"
    return Speed(name, streams * weights.nbytes / seconds / 1e9, "GB/s", note)


def _best(work: Callable[[], object]) -> float:
    """Return the shortest time, in seconds, of the rounds that fit into a moment, after a warm-up round."""
    work()
    shortest, end = math.inf, time.perf_counter() + _SECONDS
    while shortest == math.inf or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - started)
    return shortest


def _drop_cache(descriptor: int) -> bool:
    if not hasattr(os, "posix_fadvise"):
        return False
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return True
