"""A training run in a process of its own, so that the memory that is measured is its own (Linux)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# glibc gives large blocks back at once, so that resident memory is what is in use
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}


def measure(module: str, *words: str) -> dict[str, Any]:
    """Run `python -m module words...`, whose last line is JSON, and return what it says."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env={**os.environ, **_ALLOCATOR}, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


class MemoryGrowth:
    """How far resident memory rises above what it is when this is made."""

    def __init__(self) -> None:
        """Begin."""
        self._before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here

    def peak(self) -> int:
        """Bytes at the highest since, above the beginning."""
        return _resident("VmHWM") - self._before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
