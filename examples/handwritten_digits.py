"""The target domain: scikit-learn's 1,797 real handwritten digits, 8x8 pixels, enlarged to the model's 32x32."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from examples.rendered_digits import IMAGE_SIZE, as_input


@dataclass(frozen=True)
class HandwrittenDigits:
    """Images to adapt on, without labels, and a held-out half with labels to score on.

    Images are (N, 3, 32, 32) float32 in [-1, 1], labels (N,) int64.
    """

    unlabelled_images: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_handwritten_digits() -> HandwrittenDigits:
    """Split the digits in two halves with the same share of every class; the split is the same in every run."""
    pixels, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=0)
    grey = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
    grey = F.interpolate(grey, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic").clamp(0, 1).squeeze(1)
    images = as_input(grey)
    return HandwrittenDigits(images[train], images[test], torch.from_numpy(labels[test]))
