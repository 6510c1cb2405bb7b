"""timm's RandAugment, with random numbers from torch's generator only."""

import random
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

GREY = (0.5, 0.5, 0.5)


class RandAugment:
    """Two random operations at strength 10, each applied half of the time ("rand-n2-m10-mstd0.5", App. B).

    timm draws from the global generators of `random` and numpy. Both are seeded from torch's for each image and put
    back, so that one seed decides a run, in the main process as in a data loader's worker.
    """

    POLICY: ClassVar[str] = "rand-n2-m10-mstd0.5"

    def __init__(self, fill: Sequence[float] = GREY) -> None:
        """Build timm's transform; it fills with a colour, three numbers in [0, 1], where an image was moved away."""
        self.fill = tuple(min(255, round(255 * value)) for value in fill)
        self.augment = rand_augment_transform(self.POLICY, {"img_mean": self.fill})

    def __call__(self, image: Image.Image) -> Image.Image:
        """Augment an RGB image; the size stays."""
        seed = int(torch.randint(2**32, ()))
        python_state, numpy_state = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed)
        try:
            augmented: Image.Image = self.augment(image)
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
        return augmented
