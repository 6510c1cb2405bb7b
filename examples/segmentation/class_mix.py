"""DACS (Tranheden et al. 2021): half of the source's classes are pasted onto the target, then colours are jittered."""

import random

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from examples.segmentation.classes import IGNORED
from examples.segmentation.scene_batches import MEAN, STD

JITTER = 0.2
"""Largest change of brightness, contrast, saturation and hue."""

JITTER_CHANCE = 0.8
BLUR_CHANCE = 0.5


def draw_masks(labels: Tensor, chance: random.Random) -> Tensor:
    """Where to paste the source: for each image the pixels of a random half of the classes that the batch has.

    As in DAFormer's code, which took DACS's over: a class drawn for one image may be another's. Unlike there, pixels
    without a label are never pasted.

    Args:
        labels: (B, H, W), int64, of the source.
        chance: draws the classes.

    Returns:
        (B, H, W), bool.
    """
    present = [label for label in labels.unique().tolist() if label != IGNORED]
    masks = []
    for image in labels:
        chosen = chance.sample(present, (len(present) + 1) // 2)
        masks.append(torch.isin(image, torch.tensor(chosen, dtype=image.dtype, device=image.device)))
    return torch.stack(masks)


def paste(masks: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The source's values (B, ..., H, W) where the masks (B, H, W) are set, the target's elsewhere."""
    return torch.where(masks[:, None] if source.ndim == 4 else masks, source, target)


def disturb(images: Tensor, chance: random.Random) -> Tensor:
    """Jitter the colours of normalised images (B, 3, H, W), and blur some; labels stay as they are."""
    mean, std = MEAN.to(images), STD.to(images)
    changed = []
    for image in images * std + mean:
        pixels = image.clamp(0, 1)
        if chance.random() < JITTER_CHANCE:
            for adjust in (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation):
                pixels = adjust(pixels, chance.uniform(1 - JITTER, 1 + JITTER))
            pixels = V.adjust_hue(pixels, chance.uniform(-JITTER, JITTER))
        if chance.random() < BLUR_CHANCE:
            side = min(pixels.shape[-2:]) // 20 * 2 + 1  # odd, a tenth of the side
            pixels = V.gaussian_blur(pixels, [side, side], [chance.uniform(0.15, 1.15)] * 2)
        changed.append(pixels)
    return (torch.stack(changed) - mean) / std
