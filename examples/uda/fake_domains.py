"""Miniature copies of the benchmarks in their real layouts: learnable classes, a shift of style between domains."""

from collections.abc import Iterable
from pathlib import Path


class FakeDomains:
    """Writes miniature benchmarks that `Benchmark.check(root, counts=False)` accepts."""

    def __init__(self, *, images_per_class: int = 2, image_size: int = 32, seed: int = 0) -> None:
        """Fix what is written: the same arguments give the same files."""

    def write(self, benchmark: str, root: Path, domains: Iterable[str] | None = None) -> None:
        """Write the domains (abbreviations; all if left out) of a benchmark under `root`."""
        raise NotImplementedError
