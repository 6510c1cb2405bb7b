"""Triton's kernels compiled for GPUs that are not there: their PTX, and what the assembler says of it."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Compiled:
    """A kernel for one kind of GPU.

    Attributes:
        ptx: the code.
        registers: of each thread.
        local_bytes: of each thread's memory for what has no register.
    """

    ptx: str
    registers: int
    local_bytes: int

    @property
    def accesses(self) -> Counter[str]:
        """Loads from and stores to global and local memory by kind, such as `ld.global.v4.b32`."""
        return Counter(re.findall(r"\b(?:ld|st)\.(?:global|local)[\w.:]*", self.ptx))

    @property
    def wide(self) -> tuple[int, int]:
        """How many loads, and how many stores, have 16 bytes."""
        found = self.accesses
        return tuple(found[f"{kind}.global.v4.b32"] + found[f"{kind}.global.v2.b64"] for kind in ("ld", "st"))  # type: ignore[return-value]


def compile_kernel(kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], capability: int) -> Compiled:
    """Compile for an NVIDIA GPU of a compute capability such as 90; nothing runs."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not hasattr(triton, "knobs"):
        pytest.skip(f"Triton {triton.__version__} is older than 3.4")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(kernel, triton.runtime.jit.JITFunction):
        pytest.skip("TRITON_INTERPRET is set")
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants))
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    usage = _resource_usage(triton, built.asm["cubin"])
    return Compiled(built.asm["ptx"], usage["REG"], usage["STACK"] + usage["LOCAL"])


def _resource_usage(triton: Any, cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.is_file():
        pytest.skip("this Triton comes without cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True)
    return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", said.stdout)}
