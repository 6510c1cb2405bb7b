"""Miniature MNIST, USPS and SVHN in the files that torchvision downloads."""

import bz2
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from examples.uda.benchmarks.digit_files import mnist_files, svhn_files, usps_files
from examples.uda.fake_figures import draw_digit

Array = np.ndarray[Any, Any]


def write_digits(domain: str, folder: Path, images_per_class: int, chance: random.Random) -> None:
    """Write both splits of "S", "M" or "U" into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    size, write = WRITERS[domain]
    for split in ("train", "test"):
        images, labels = draw_digits(size, images_per_class, chance)
        write(folder, split, images, labels, chance)


def draw_digits(size: int, images_per_class: int, chance: random.Random) -> tuple[Array, Array]:
    """Grey images (N, size, size) of dtype uint8 and labels (N,), shuffled, as many of each digit."""
    labels = [digit for digit in range(10) for _ in range(images_per_class)]
    chance.shuffle(labels)
    return np.stack([np.asarray(draw_digit(digit, chance, size)) for digit in labels]), np.array(labels)


def idx_bytes(values: Array) -> bytes:
    """MNIST's format: two zero bytes, 8 for uint8, the number of dimensions, each big-endian, the values."""
    sizes = np.array(values.shape, dtype=">u4").tobytes()
    return bytes((0, 0, 8, values.ndim)) + sizes + values.astype(np.uint8).tobytes()


def _write_mnist(folder: Path, split: str, images: Array, labels: Array, chance: random.Random) -> None:
    (folder / "raw").mkdir(exist_ok=True)
    image_file, label_file = mnist_files(folder, split)
    image_file.write_bytes(idx_bytes(images))
    label_file.write_bytes(idx_bytes(labels))


def _write_usps(folder: Path, split: str, images: Array, labels: Array, chance: random.Random) -> None:
    """A line an image: label from 1, then "position:value" with values in [-1, 1]."""
    rows = images.reshape(len(images), -1) / 127.5 - 1
    lines = [
        f"{label + 1} " + " ".join(f"{position}:{value:.4f}" for position, value in enumerate(row, start=1))
        for label, row in zip(labels, rows, strict=True)
    ]
    (path,) = usps_files(folder, split)
    path.write_bytes(bz2.compress("\n".join(lines).encode()))


def _write_svhn(folder: Path, split: str, images: Array, labels: Array, chance: random.Random) -> None:
    """Coloured ink on coloured ground; images (32, 32, 3, N), zero is class 10."""
    from scipy.io import savemat

    generator = np.random.default_rng(chance.getrandbits(32))
    ink, ground = (generator.uniform(low, low + 120, (len(images), 1, 1, 3)) for low in (135, 0))
    share = images[..., None] / 255
    coloured = (share * ink + (1 - share) * ground + generator.normal(0, 10, (*images.shape, 3))).clip(0, 255)
    (path,) = svhn_files(folder, split)
    values = {
        "X": coloured.astype(np.uint8).transpose(1, 2, 3, 0),
        "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None],
    }
    savemat(path, values, do_compression=True)


WRITERS: dict[str, tuple[int, Callable[[Path, str, Array, Array, random.Random], None]]] = {
    "S": (32, _write_svhn),
    "M": (28, _write_mnist),
    "U": (16, _write_usps),
}
"""Side of the images, and what writes a split, by domain."""
