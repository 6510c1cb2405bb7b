"""Miniature PACS and small digits in the archives that `pacs` and `digits_small` read; an untrained SVHN network."""

import gzip
import io
import random
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from examples.uda.fake_digits import draw_digits, idx_bytes
from examples.uda.svhn_cnn import svhn_network, tensors_on_disk


def write_pacs(path: Path, images: list[Image.Image], labels: list[int]) -> None:
    """One domain's archive: JPEG files one after another, where each starts and the last ends, labels."""
    encoded = [_jpeg(image) for image in images]
    offsets = np.cumsum([0, *(len(file) for file in encoded)])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, jpeg=np.frombuffer(b"".join(encoded), np.uint8), offset=offsets, y=np.array(labels, np.uint8))


def write_small_digits(domain: str, folder: Path, images_per_class: int, chance: random.Random) -> None:
    """Write both splits of "M" or "U" into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (draw_digits(28 if domain == "M" else 16, images_per_class, chance) for _ in range(2))
    if domain == "M":
        for prefix, (images, labels) in (("train", train), ("t10k", test)):
            (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images), mtime=0))
            (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels), mtime=0))
        return
    with h5py.File(folder / "usps.h5", "w") as file:
        for split, (images, labels) in (("train", train), ("test", test)):
            file[f"{split}/data"] = (images.reshape(len(images), -1) / 255).astype(np.float32)
            file[f"{split}/target"] = labels.astype(np.int32)


def write_svhn_network(path: Path, chance: random.Random) -> None:
    """The SVHN classifier's file, with random weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chance.randrange(2**32))
        save_file(tensors_on_disk(svhn_network()), path)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()
