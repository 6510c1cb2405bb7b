"""The paper's benchmarks by name."""

from examples.uda.benchmarks.benchmark import Benchmark, ClassOrder, DatasetError, Role, Split
from examples.uda.benchmarks.domain_dataset import DomainDataset, ImageArrays, ImageFiles

BENCHMARKS: dict[str, Benchmark] = {}
"""Every benchmark that can be reproduced, by name."""

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "ClassOrder",
    "DatasetError",
    "DomainDataset",
    "ImageArrays",
    "ImageFiles",
    "Role",
    "Split",
    "get_benchmark",
]


def get_benchmark(name: str) -> Benchmark:
    """Look a benchmark up. Raises `KeyError` naming the known ones."""
    if name not in BENCHMARKS:
        raise KeyError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {name!r}")
    return BENCHMARKS[name]
