"""The backends of this machine: cores, a compiler, GPUs, and whether Eq. 17 compiles."""

import os
import shutil
import time
import warnings
from dataclasses import dataclass

import torch

from rst.training.projection_compiled import compiles, has_compiler


@dataclass(frozen=True)
class Backends:
    """The backends found.

    Attributes:
        cores: number of cores that this process may use.
        threads: number of threads that torch uses.
        cuda: names of the GPUs that torch sees.
        has_driver: whether an NVIDIA driver's tool is installed, whatever torch finds.
        has_compiler: whether torch.compile's requirements are installed.
        compiles: whether the fused projection compiled and ran.
        compile_seconds: duration of the compilation; short if it was in torch's cache.
        reason: why it did not compile, in one line, if there is a compiler.
    """

    cores: int
    threads: int
    cuda: list[str]
    has_driver: bool
    has_compiler: bool
    compiles: bool
    compile_seconds: float
    reason: str


def find_backends() -> Backends:
    """Find the backends, and compile the projection for the GPU if there is one, otherwise for the CPU."""
    device = best_device()
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        compiled = compiles(device, torch.float32)
    return Backends(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        cuda=[torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        has_driver=shutil.which("nvidia-smi") is not None,
        has_compiler=has_compiler(device),
        compiles=compiled,
        compile_seconds=time.perf_counter() - started,
        reason="" if compiled or not raised else str(raised[-1].message),
    )


def best_device() -> torch.device:
    """Return the GPU if torch finds one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
