"""Triton's kernels on the CPU: the modules that have them once more, for Triton's interpreter, within a block.

The interpreter is chosen when a kernel is defined. Tests beside these in one process see the compiled kind, and Triton
as it is without the interpreter.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from rst.numerics import kernels

MODULES = (
    "rst.numerics.blocks_triton",
    "rst.numerics.difference_triton",
    "rst.training.projection_triton",
    "rst.training.boundary_triton",
    "rst.live.exchange_triton",
    "rst.sync.hashing_triton",
)
_interpreted: dict[str, ModuleType] = {}


@contextmanager
def interpreted_kernels(block_bytes: int = 64) -> Iterator[list[str]]:
    """Have kernels that are asked for meanwhile interpreted, for tensors on any device.

    Args:
        block_bytes: small blocks, so that small tensors have full ones too.

    Yields:
        The names of the kernels that were launched.
    """
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not hasattr(triton, "knobs"):
        pytest.skip(f"Triton {triton.__version__} is older than 3.4, whose interpreter this is for")
    import triton.language as tl
    from triton.runtime.interpreter import GridExecutor, InterpretedFunction

    launches: list[str] = []
    launch = GridExecutor.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.append(self.fn.__name__)
        with np.errstate(all="ignore"):  # numpy does the arithmetic, in which infinities may meet
            return launch(self, *args, **kwargs)

    own = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.runtime, "interpret", True)
        patch.setattr(GridExecutor, "__call__", counted)
        patch.setattr(kernels, "run_on", lambda device: True)
        # What a launch does for its kernel takes a while, and is not needed for each function that it calls.
        patch.setattr(InterpretedFunction, "__call__", lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs))
        add = tl.standard._sum_combine
        patch.setattr(tl, "sum", lambda elements, axis: tl.reduce(elements, axis, add))
        patch.setattr(tl, "cumsum", lambda elements, axis: tl.associative_scan(elements, axis, add))
        sys.modules.update(_interpreted)
        try:
            _interpreted.update({name: importlib.import_module(name) for name in MODULES})
            _put(_interpreted)
            patch.setattr(_interpreted["rst.numerics.blocks_triton"], "_BYTES", block_bytes)
            yield launches
        finally:
            for name in MODULES:
                package, _, leaf = name.rpartition(".")
                sys.modules.pop(name, None)
                vars(sys.modules[package]).pop(leaf, None)
            _put(own)


def _put(modules: Mapping[str, ModuleType]) -> None:
    """Have modules be found, by either way to import one."""
    for name, module in modules.items():
        package, _, leaf = name.rpartition(".")
        sys.modules[name] = module
        setattr(sys.modules[package], leaf, module)
