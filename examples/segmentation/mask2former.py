"""Mask2Former (Cheng et al. 2022) from transformers, split between backbone and decoder as in App. L."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig
from transformers.utils import logging

from cmkd.segmentation import DenseStudent
from examples.segmentation.classes import IGNORED
from examples.segmentation.mask2former_loss import WeightedMaskLoss

FLOOR = 1e-6
"""Added to every class's score before the logarithm: a class that no query speaks for has score 0."""


class Queries(NamedTuple):
    """What the decoder says, layer by layer: class logits (B, Q, C + 1), mask logits (B, Q, h, w)."""

    classes: list[Tensor]
    masks: list[Tensor]


class Backbone(nn.Module):
    """Images (B, 3, H, W) to feature maps of four scales."""

    def __init__(self, backbone: nn.Module) -> None:
        """Take transformers' backbone."""
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        """The feature maps, the finest first."""
        return list(self.backbone(images).feature_maps)


class Decoder(nn.Module):
    """Pixel decoder, transformer decoder and class predictor: D_M of App. L."""

    def __init__(self, network: Mask2FormerForUniversalSegmentation) -> None:
        """Take the parts of the network, not copies."""
        super().__init__()
        self.pixel_decoder = network.model.pixel_level_module.decoder
        self.transformer = network.model.transformer_module
        self.class_predictor = network.class_predictor

    def forward(self, features: list[Tensor]) -> Queries:
        """Classes and masks of every query, of every layer."""
        pixels = self.pixel_decoder(features, output_hidden_states=True)
        decoded = self.transformer(
            multi_scale_features=pixels.multi_scale_features,
            mask_features=pixels.mask_features,
            output_hidden_states=True,
            output_attentions=False,
        )
        classes = [self.class_predictor(layer.transpose(0, 1)) for layer in decoded.intermediate_hidden_states]
        return Queries(classes, list(decoded.masks_queries_logits))


class Mask2Former(DenseStudent):
    """Backbone and decoder as encoder and head; its own loss is Mask2Former's."""

    def __init__(self, network: Mask2FormerForUniversalSegmentation) -> None:
        """Take the network's parts; `published` still has them under the names of its checkpoint."""
        super().__init__(Backbone(network.model.pixel_level_module.encoder), Decoder(network))
        self.criterion = WeightedMaskLoss(network.config, network.weight_dict)
        self._published = (network,)  # in a tuple, so that its tensors are not registered twice

    @property
    def published(self) -> Mask2FormerForUniversalSegmentation:
        """The same weights under the names of the published checkpoint: what a delta is made for."""
        return self._published[0]

    def log_view(self, output: Queries, size: tuple[int, int]) -> Tensor:
        """Log-probabilities (B, C, *size): the queries' votes for each class, normalised over the classes."""
        wide = torch.promote_types(output.masks[-1].dtype, torch.float32)
        masks = F.interpolate(output.masks[-1].to(wide), size=size, mode="bilinear", align_corners=False).sigmoid()
        classes = output.classes[-1].softmax(dim=-1, dtype=wide)[..., :-1]
        scores = torch.einsum("bqc,bqhw->bchw", classes, masks) + FLOOR
        return (scores / scores.sum(dim=1, keepdim=True)).log()

    def loss(self, output: Queries, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mask2Former's loss over all layers, with a mask for each class that an image has.

        Args:
            output: of the decoder.
            labels: (B, H, W), int64; 255 belongs to no mask.
            weights: (B, H, W), each pixel's weight; all 1 if left out.
        """
        masks, classes = zip(*(class_masks(image) for image in labels), strict=True)
        weights = torch.ones(labels.shape, device=labels.device) if weights is None else weights
        self.criterion.weigh(weights.to(output.masks[-1].dtype), list(masks))
        *auxiliary, (last_classes, last_masks) = zip(output.classes, output.masks, strict=True)
        terms = self.criterion(
            last_masks,
            last_classes,
            list(masks),
            list(classes),
            [{"class_queries_logits": c, "masks_queries_logits": m} for c, m in auxiliary],
        )
        factors = self.criterion.weight_dict
        return torch.stack([factors[name.rstrip("_0123456789")] * term for name, term in terms.items()]).sum()


def class_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (H, W) as float masks (N, H, W) and their classes (N,), without the ignored pixels."""
    classes = labels.unique()
    classes = classes[classes != IGNORED]
    return (labels == classes[:, None, None]).float(), classes


def load_mask2former(checkpoint: str, classes: int) -> Mask2Former:
    """Load by the hub's name or from a local folder, such as `facebook/mask2former-swin-tiny-cityscapes-semantic`.

    Raises:
        ValueError: if the checkpoint has another number of classes.
        OSError: if transformers finds no such checkpoint.
    """
    network = Mask2FormerForUniversalSegmentation.from_pretrained(checkpoint)
    if network.config.num_labels != classes:
        raise ValueError(f"{checkpoint} has {network.config.num_labels} classes, wanted {classes}")
    return Mask2Former(network)


def resnet50_config(classes: int) -> Mask2FormerConfig:
    """The paper's architecture, Mask2Former on ResNet-50; no checkpoint of it for Cityscapes is on the hub."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # "resnet is not a supported model": it is, Mask2Former's own
    stages = [f"stage{number}" for number in range(1, 5)]
    config = Mask2FormerConfig(backbone_config=ResNetConfig(out_features=stages), num_labels=classes)
    logging.set_verbosity(verbosity)
    return config


def tiny_config(classes: int) -> Mask2FormerConfig:
    """The same network with a few channels, for generated scenes."""
    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = SwinConfig(
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=4,
        drop_path_rate=0.0,
        out_features=stages,
    )
    return Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        num_attention_heads=2,
        encoder_layers=1,
        encoder_feedforward_dim=64,
        decoder_layers=3,
        dim_feedforward=64,
        num_queries=24,
        train_num_points=256,
        num_labels=classes,
    )


def save_tiny_mask2former(folder: Path, classes: int) -> None:
    """Write a tiny, untrained network as a checkpoint folder, as the hub has them."""
    Mask2FormerForUniversalSegmentation(tiny_config(classes)).save_pretrained(folder)
