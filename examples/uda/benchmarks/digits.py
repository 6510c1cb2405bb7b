"""Digits: SVHN, MNIST and USPS with their standard splits; 3 tasks, scored on the target's test set (Table III)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.uda.benchmarks.benchmark import Benchmark, Role, Split
from examples.uda.benchmarks.dataset_error import listed
from examples.uda.benchmarks.digit_files import (
    Digits,
    mnist_files,
    read_mnist,
    read_svhn,
    read_usps,
    svhn_files,
    usps_files,
)
from examples.uda.benchmarks.domain_dataset import ImageArrays

SPLITS: tuple[Split, Split] = ("train", "test")
IMAGES = {"S": (73_257, 26_032), "M": (60_000, 10_000), "U": (7_291, 2_007)}
FILES: dict[str, Callable[[Path, str], list[Path]]] = {"S": svhn_files, "M": mnist_files, "U": usps_files}
READERS: dict[str, Callable[[Path, str], Digits]] = {"S": read_svhn, "M": read_mnist, "U": read_usps}


@dataclass(frozen=True, eq=False, kw_only=True)
class DigitsBenchmark(Benchmark):
    """The three data sets in the files that torchvision downloads, a folder each, with their standard splits."""

    def problems(self, root: Path, domain: str, *, counts: bool) -> list[str]:
        """Missing files, missing or unexpected digits, and another number of images than the published."""
        folder = self.folder(root, domain)
        files = [path for split in SPLITS for path in FILES[domain](folder, split)]
        absent = [str(path.relative_to(folder)) for path in files if not path.is_file()]
        if absent:
            return [f"{len(absent)} of {len(files)} files missing: {listed(absent)}"]
        problems = []
        for split, expected in zip(SPLITS, IMAGES[domain], strict=True):
            labels = READERS[domain](folder, split).labels
            missing = [name for name in self.classes if int(name) not in labels]
            if missing:
                problems.append(f"{split}: {len(missing)} classes missing (10 expected): {listed(missing)}")
            if counts and len(labels) != expected:
                problems.append(f"{split}: {expected:,} images expected, {len(labels):,} found")
        return problems

    def dataset(
        self, root: Path, domain: str, split: Split, transform: Callable[[Any], Any] | None = None, *, role: Role
    ) -> ImageArrays:
        """One standard split, held in memory; see `Benchmark.dataset`."""
        digits = READERS[domain](self.folder(root, domain), split)
        return ImageArrays(digits.images, digits.labels, transform)


DIGITS = DigitsBenchmark(
    name="digits",
    title="Digits",
    domains={"S": "SVHN", "M": "MNIST", "U": "USPS"},
    tasks=(("S", "M"), ("U", "M"), ("M", "U")),
    classes=tuple("0123456789"),
    layout="""\
  SVHN/train_32x32.mat, SVHN/test_32x32.mat
  MNIST/raw/train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte
  USPS/usps.bz2, USPS/usps.t.bz2""",
    download=(
        "Download SVHN's cropped digits from http://ufldl.stanford.edu/housenumbers/, MNIST (unpacked) from "
        "https://yann.lecun.com/exdb/mnist/ and USPS from "
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps; or let torchvision do it, with "
        'download=True: SVHN("ROOT/SVHN", split), MNIST("ROOT"), USPS("ROOT/USPS", train).'
    ),
)
