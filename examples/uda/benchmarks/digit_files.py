"""MNIST, USPS and SVHN read from the files that torchvision downloads."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Digits(NamedTuple):
    """Images (N, H, W) or (N, H, W, 3) of dtype uint8, and labels 0 to 9."""

    images: np.ndarray[Any, Any]
    labels: list[int]


def mnist_files(folder: Path, split: str) -> list[Path]:
    """The two files of a split under the folder `MNIST`."""
    stem = "train" if split == "train" else "t10k"
    return [folder / "raw" / f"{stem}-{part}" for part in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def read_mnist(folder: Path, split: str) -> Digits:
    """60,000 or 10,000 images (N, 28, 28)."""
    from torchvision.datasets import MNIST

    dataset = MNIST(folder.parent, train=split == "train")
    return Digits(dataset.data.numpy(), dataset.targets.tolist())


def usps_files(folder: Path, split: str) -> list[Path]:
    """The file of a split under the folder `USPS`."""
    return [folder / ("usps.bz2" if split == "train" else "usps.t.bz2")]


def read_usps(folder: Path, split: str) -> Digits:
    """7,291 or 2,007 images (N, 16, 16)."""
    from torchvision.datasets import USPS

    dataset = USPS(folder, train=split == "train")
    return Digits(np.asarray(dataset.data), dataset.targets)


def svhn_files(folder: Path, split: str) -> list[Path]:
    """The file of a split under the folder `SVHN`."""
    return [folder / f"{split}_32x32.mat"]


def read_svhn(folder: Path, split: str) -> Digits:
    """73,257 or 26,032 images (N, 32, 32, 3). Not torchvision's class: its checksum admits no miniature copy."""
    from scipy.io import loadmat

    (path,) = svhn_files(folder, split)
    arrays = loadmat(path)
    labels = arrays["y"].ravel().astype(int) % 10  # the files call zero class 10
    return Digits(np.ascontiguousarray(arrays["X"].transpose(3, 0, 1, 2)), labels.tolist())
