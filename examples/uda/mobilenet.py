"""The real ImageNet MobileNetV2, read from its 8-bit archive: an encoder of 1,280 features and its classifier."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ARCHIVE = Path("mobilenet_v2") / "mobilenet_v2_imagenet_u8.npz"
LABELS = Path("mobilenet_v2") / "imagenet_labels.txt"
MEAN = STD = (0.5, 0.5, 0.5)
"""(x - 128) / 128 of 8-bit images, to within half a grey level."""

FEATURES = 1280
CLASSES = 1001  # the first is "background"
STRIDE = 32
BLOCKS = (  # expansion, channels, repetitions, stride of the first (Table 2 of the MobileNetV2 paper)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ImageNetMobileNet(NamedTuple):
    """The pretrained network in two: `encoder` maps images to features (B, 1280), `classifier` these to 1,001 logits.

    Attributes:
        encoder: a `MobileNetV2`, in eval mode.
        classifier: Linear(1280, 1001), in eval mode.
        class_names: 1,001 names, the first "background", the others WordNet's synonyms joined by ", ".
    """

    encoder: "MobileNetV2"
    classifier: nn.Linear
    class_names: list[str]


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 (Sandler et al., 2018) without its classifier, BatchNorm folded into the convolutions.

    Parameters have torchvision's names. With BatchNorm folded there are no statistics to move, which is the frozen
    BatchNorm of the paper's ResNets carried to its end.
    """

    def __init__(self) -> None:
        """Build the layers; `load_mobilenet` fills them."""
        super().__init__()
        layers: list[nn.Module] = [_conv_relu(3, 32, kernel=3, stride=2)]
        channels = 32
        for expansion, out_channels, repetitions, first_stride in BLOCKS:
            for repetition in range(repetitions):
                stride = first_stride if repetition == 0 else 1
                layers.append(InvertedResidual(channels, out_channels, expansion, stride))
                channels = out_channels
        layers.append(_conv_relu(channels, FEATURES, kernel=1))
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 1280) of images (B, 3, H, W) normalised by `MEAN` and `STD`.

        Raises:
            ValueError: if H or W is not a multiple of 32, where TensorFlow's padding would differ from ours.
        """
        if images.shape[2] % STRIDE or images.shape[3] % STRIDE:
            raise ValueError(
                f"images {tuple(images.shape)} must have a height and width that are multiples of {STRIDE}"
            )
        # On a CPU convolutions take half the time with the channels innermost; the weights need not be so.
        features: Tensor = self.features(images.contiguous(memory_format=torch.channels_last))
        return features.mean(dim=(2, 3))


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without an activation; add the input where it fits."""

    def __init__(self, channels: int, out_channels: int, expansion: int, stride: int) -> None:
        """Map `channels` to `out_channels` through `expansion * channels` hidden ones."""
        super().__init__()
        hidden = expansion * channels
        self.adds_input = stride == 1 and channels == out_channels
        expand = [_conv_relu(channels, hidden, kernel=1)] if expansion > 1 else []
        filter_each = _conv_relu(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.conv = nn.Sequential(*expand, filter_each, nn.Conv2d(hidden, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.adds_input else y


class HalvingConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 with TensorFlow's SAME padding of even sizes: a row and a column at the far end."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / 2, W / 2); H and W even."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def _conv_relu(channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    if stride == 2:
        conv: nn.Conv2d = HalvingConv2d(channels, out_channels, kernel, stride, groups=groups)
    else:
        conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, groups=groups)
    return nn.Sequential(conv, nn.ReLU6(inplace=True))


def load_mobilenet(root: Path) -> ImageNetMobileNet:
    """Read the pretrained network from `root`/mobilenet_v2.

    Raises:
        FileNotFoundError: if the archive or the list of labels is missing, naming what to put where.
        ValueError: if the list does not have 1,001 names.
        RuntimeError: if the archive's arrays are not this network's, naming them.
    """
    weights, biases = _read_archive(_existing(root / ARCHIVE))
    encoder, classifier = MobileNetV2(), nn.Linear(FEATURES, CLASSES)
    state = {f"{name}.weight": weight for name, weight in weights.items()}
    state |= {f"{name}.bias": bias for name, bias in biases.items()}
    classifier.load_state_dict({name: state.pop(f"classifier.1.{name}") for name in ("weight", "bias")})
    encoder.load_state_dict(state)

    class_names = _existing(root / LABELS).read_text().splitlines()
    if len(class_names) != CLASSES:
        raise ValueError(f"{root / LABELS} must have {CLASSES} lines, one a class, got {len(class_names)}")
    return ImageNetMobileNet(encoder.eval(), classifier.eval(), class_names)


def _read_archive(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and biases by layer: float weight = (u8 - zero point) * scale, one scale a layer."""
    weights, biases = {}, {}
    with np.load(path) as archive:
        for key in archive.files:
            name, _, kind = key.rpartition(".")
            if kind == "weight_u8":
                scale, zero_point = archive[f"{name}.scale_zp"]
                weights[name] = torch.from_numpy(((archive[key] - zero_point) * scale).astype(np.float32))
            elif kind == "bias":
                biases[name] = torch.from_numpy(archive[key])
    return weights, biases


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: it holds the 8-bit ImageNet MobileNetV2 1.0 of github.com/google-coral/test_data "
            "(Apache-2.0), its tensors under torchvision's names, and the 1,001 class names beside it"
        )
    return path
