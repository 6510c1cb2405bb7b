"""zstd and xdelta3 as programs: the result of general tools on a pair of files."""

import shutil
import subprocess
from pathlib import Path


class NotInstalledError(Exception):
    """A program is not on the PATH."""


def zstd(source: Path, target: Path, level: int) -> None:
    """Compress a file."""
    _run("zstd", f"-{level}", "-q", "-f", "-T1", source, "-o", target)


def unzstd(source: Path, target: Path) -> None:
    """Invert `zstd`."""
    _run("zstd", "-d", "-q", "-f", source, "-o", target)


def zstd_patch(base: Path, tuned: Path, target: Path, level: int) -> None:
    """Compress `tuned` with `base` as its dictionary."""
    _run("zstd", f"-{level}", "-q", "-f", "-T1", "--long=27", f"--patch-from={base}", tuned, "-o", target)


def zstd_unpatch(base: Path, patch: Path, target: Path) -> None:
    """Invert `zstd_patch`."""
    _run("zstd", "-d", "-q", "-f", "--long=27", f"--patch-from={base}", patch, "-o", target)


def xdelta3(base: Path, tuned: Path, target: Path) -> None:
    """Write a VCDIFF patch with all of the base in view."""
    _run("xdelta3", "-e", "-f", "-9", "-B", max(1 << 20, base.stat().st_size), "-s", base, tuned, target)


def xdelta3_apply(base: Path, patch: Path, target: Path) -> None:
    """Invert `xdelta3`."""
    _run("xdelta3", "-d", "-f", "-B", max(1 << 20, base.stat().st_size), "-s", base, patch, target)


def _run(program: str, *arguments: object) -> None:
    found = shutil.which(program)
    if found is None:
        raise NotInstalledError(f"skipped: {program} is not installed")
    subprocess.run([found, *map(str, arguments)], check=True, capture_output=True)
