"""Digits on two cores: MNIST to USPS and back at their original size, read from their original files."""

import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from examples.uda.benchmarks.benchmark import Benchmark, Role, Split
from examples.uda.benchmarks.domain_dataset import ImageArrays

CLASSES = 10
SIZES = {"M": 28, "U": 16}
COUNTS: dict[str, dict[Split, tuple[int, ...]]] = {
    "M": {"train": (60_000, 10_000), "test": (10_000,)},
    "U": {"train": (7_291,), "test": (2_007,)},
}
"""Images of each split; MNIST's training set may be the official one or 10,000 images of it."""

MNIST_PREFIXES: dict[Split, tuple[str, ...]] = {"train": ("train", "train10k"), "test": ("t10k",)}
USPS_FILE = "usps.h5"
IDX_UINT8 = 8


class Digits(NamedTuple):
    """Grey images (N, H, W) uint8, ink bright, and labels (N,) uint8."""

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class DigitsSmall(Benchmark):
    """MNIST <-> USPS with their standard splits."""

    def problems(self, root: Path, domain: str, *, counts: bool) -> list[str]:
        """What is wrong with one domain's files, a sentence each; empty if nothing is."""
        found = []
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            try:
                digits = _read(root / self.domains[domain], domain, split)
            except (OSError, KeyError, ValueError, EOFError) as error:
                found.append(f"{split}: {error}")
            else:
                found += [f"{split}: {problem}" for problem in _problems(digits, domain, split, counts=counts)]
        return found

    def dataset(
        self, root: Path, domain: str, split: Split, transform: Callable[[Any], Any] | None = None, *, role: Role
    ) -> ImageArrays:
        """Grey images of one domain's standard split, whatever the role."""
        digits = _read(root / self.domains[domain], domain, split)
        return ImageArrays(digits.images, digits.labels.tolist(), transform)


def _problems(digits: Digits, domain: str, split: Split, *, counts: bool) -> list[str]:
    found = []
    images, labels = digits
    if images.ndim != 3 or images.shape[1:] != (SIZES[domain], SIZES[domain]) or labels.shape != images.shape[:1]:
        found.append(
            f"images {images.shape} with labels {labels.shape}, expected (N, {SIZES[domain]}, {SIZES[domain]}), (N,)"
        )
    if set(labels.tolist()) != set(range(CLASSES)):
        found.append(f"labels {sorted(set(labels.tolist()))}, expected 0 to {CLASSES - 1}")
    if counts and len(images) not in COUNTS[domain][split]:
        expected = " or ".join(f"{count:,}" for count in COUNTS[domain][split])
        found.append(f"{len(images):,} images, expected {expected}")
    return found


def _read(folder: Path, domain: str, split: Split) -> Digits:
    return _read_usps(folder, split) if domain == "U" else _read_mnist(folder, split)


def _read_mnist(folder: Path, split: Split) -> Digits:
    for prefix in MNIST_PREFIXES[split]:
        images = folder / f"{prefix}-images-idx3-ubyte.gz"
        if images.is_file():
            return Digits(_read_idx(images), _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"))
    names = " or ".join(f"{prefix}-images-idx3-ubyte.gz" for prefix in MNIST_PREFIXES[split])
    raise FileNotFoundError(f"{folder} has no {names}")


def _read_idx(path: Path) -> np.ndarray[Any, Any]:
    """An IDX file: two zero bytes, the dtype, the number of dimensions, their sizes (big-endian), the values."""
    with gzip.open(path) as file:
        content = file.read()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != IDX_UINT8:
        raise ValueError(f"{path.name} is not an IDX file of uint8, it starts with {content[:4]!r}")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{path.name} has {len(content) - start:,} values for its shape {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_usps(folder: Path, split: Split) -> Digits:
    if not (folder / USPS_FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {USPS_FILE}")
    with h5py.File(folder / USPS_FILE) as file:
        pixels, labels = file[f"{split}/data"][:], file[f"{split}/target"][:]
    side = SIZES["U"]
    return Digits(np.rint(255 * pixels).astype(np.uint8).reshape(-1, side, side), labels.astype(np.uint8))


DIGITS_SMALL = DigitsSmall(
    name="digits_small",
    title="Digits (small)",
    domains={"M": "mnist", "U": "usps"},
    tasks=(("U", "M"), ("M", "U")),
    classes=tuple(str(digit) for digit in range(CLASSES)),
    layout=(
        "  mnist/train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz (or train10k-...: 10,000 of them)\n"
        "  mnist/t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz\n"
        "  usps/usps.h5 (train/data, train/target, test/data, test/target; data (N, 256) in [0, 1])"
    ),
    download=(
        "Download MNIST's four files from https://ossci-datasets.s3.amazonaws.com/mnist/ and USPS as HDF5 from "
        "github.com/niuers/Learning-From-Data-A-Short-Course (data/usps.h5)."
    ),
)
