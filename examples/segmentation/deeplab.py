"""DeepLab-V2 (Chen et al. 2017): a ResNet at an eighth of the resolution, and a head of dilated convolutions."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet101_Weights, resnet101

from cmkd.segmentation import DenseStudent
from examples.segmentation.classes import IGNORED

DILATIONS = (6, 12)
"""Two, as in the paper's Table VII: 2048 * 9 * 19 * 2 + 38 = 700,454 parameters, its linear probe's 0.70 M."""


class DilatedHead(nn.Module):
    """The sum of 3 x 3 convolutions that see farther and farther: features (B, D, h, w) to logits (B, C, h, w)."""

    def __init__(self, channels: int, classes: int, dilations: Sequence[int] = DILATIONS) -> None:
        """Draw small weights; biases begin at 0."""
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, classes, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d)
            assert branch.bias is not None
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of every branch, added."""
        return torch.stack([branch(features) for branch in self.branches]).sum(dim=0)


class DeepLabV2(DenseStudent):
    """Encoder and head; its own loss is the pixels' cross entropy."""

    def log_view(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """Log-probabilities (B, C, *size) of logits (B, C, h, w), which are enlarged first."""
        return _enlarge(output, size).log_softmax(dim=1)

    def loss(self, output: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Cross entropy of logits (B, C, h, w), averaged over all pixels; those without a label add 0, as in DAFormer.

        Args:
            output: logits of the head.
            labels: (B, H, W), int64; 255 is no label.
            weights: (B, H, W), each pixel's weight; all 1 if left out.
        """
        height, width = labels.shape[-2:]
        logits = _enlarge(output, (height, width))
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        return (losses if weights is None else losses * weights).mean()


def build_deeplab(classes: int, *, pretrained: bool) -> DeepLabV2:
    """DeepLab-V2 on ResNet-101 at output stride 8, with ImageNet classification weights if wanted."""
    weights = ResNet101_Weights.IMAGENET1K_V1 if pretrained else None
    backbone = resnet101(weights=weights, replace_stride_with_dilation=[False, True, True])
    stages = OrderedDict(list(backbone.named_children())[:-2])  # without the pooling and the classifier
    return DeepLabV2(nn.Sequential(stages), DilatedHead(2048, classes))


def _enlarge(logits: Tensor, size: tuple[int, int]) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.interpolate(logits.to(wide), size=size, mode="bilinear", align_corners=False)
