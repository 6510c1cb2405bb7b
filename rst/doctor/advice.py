"""Advice on what to install or change, for each thing that is missing or slow."""

import sys
from collections.abc import Sequence

from rst.doctor.backends import Backends
from rst.doctor.versions import Extra
from rst.extras import install_command

_INSTALL_COMPILER = {"darwin": "xcode-select --install", "win32": "winget install LLVM.LLVM"}


def advice(backends: Backends, extras: Sequence[Extra]) -> list[str]:
    """Return one sentence per finding, with the command that fixes it; empty if there are none."""
    return [*_compiler(backends), *_gpu(backends), *_threads(backends), *_half_installed(extras)]


def _compiler(backends: Backends) -> list[str]:
    if not backends.has_compiler:
        if backends.cuda:
            return ["no Triton: the projection runs in eager mode on the GPU; pip install triton"]
        command = _INSTALL_COMPILER.get(sys.platform, "apt-get install g++")
        return [f"no C++ compiler: the projection runs in eager mode, about half as fast; {command}"]
    if not backends.compiles:
        return [f"{backends.reason}; the projection runs in eager mode; reinstall the compiler with its headers"]
    return []


def _gpu(backends: Backends) -> list[str]:
    if backends.has_driver and not backends.cuda:
        return ["a GPU driver is installed, but this torch sees no GPU: choose a build of torch at pytorch.org"]
    return []


def _threads(backends: Backends) -> list[str]:
    if backends.threads < backends.cores:
        return [f"torch uses {backends.threads} of {backends.cores} cores; unset OMP_NUM_THREADS, or set it higher"]
    return []


def _half_installed(extras: Sequence[Extra]) -> list[str]:
    return [
        f"the extra {extra.name} is incomplete, it lacks {', '.join(extra.missing)}; {install_command(extra.name)}"
        for extra in extras
        if extra.missing and len(extra.missing) < len(extra.packages)
    ]
