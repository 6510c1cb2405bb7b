"""The paper's benchmarks by name, and those that run on two cores."""

from examples.uda.benchmarks.benchmark import Benchmark, Role, Split
from examples.uda.benchmarks.dataset_error import DatasetError
from examples.uda.benchmarks.digits import DIGITS
from examples.uda.benchmarks.digits_small import DIGITS_SMALL
from examples.uda.benchmarks.digits_source_free import DIGITS_SOURCE_FREE
from examples.uda.benchmarks.domain_dataset import DomainDataset, ImageArrays, ImageFiles
from examples.uda.benchmarks.domainnet import DOMAINNET
from examples.uda.benchmarks.image_folder import ImageFolderBenchmark
from examples.uda.benchmarks.imageclef_da import IMAGECLEF_DA
from examples.uda.benchmarks.office31 import OFFICE31
from examples.uda.benchmarks.office_home import OFFICE_HOME
from examples.uda.benchmarks.office_home_partial import OFFICE_HOME_PARTIAL
from examples.uda.benchmarks.pacs import PACS
from examples.uda.benchmarks.visda2017 import VISDA2017

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        OFFICE_HOME,
        OFFICE_HOME_PARTIAL,
        OFFICE31,
        IMAGECLEF_DA,
        VISDA2017,
        DOMAINNET,
        DIGITS,
        DIGITS_SMALL,
        DIGITS_SOURCE_FREE,
        PACS,
    )
}
"""Every benchmark that can be reproduced, by name."""

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "DatasetError",
    "DomainDataset",
    "ImageArrays",
    "ImageFiles",
    "ImageFolderBenchmark",
    "Role",
    "Split",
    "get_benchmark",
]


def get_benchmark(name: str) -> Benchmark:
    """Look a benchmark up. Raises `ValueError` naming the known ones."""
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {name!r}")
    return BENCHMARKS[name]
