"""timm's RandAugment, drawn from torch's generator alone."""

import random
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform


class RandAugment:
    """Two random operations at strength 10, each applied half of the time ("rand-n2-m10-mstd0.5", App. B).

    timm draws from the global generators of `random` and numpy. Both are seeded from torch's for each image and put
    back, so that one seed decides a run, in the main process as in a data loader's worker.
    """

    POLICY: ClassVar[str] = "rand-n2-m10-mstd0.5"

    def __init__(self) -> None:
        """Build timm's transform."""
        self.augment = rand_augment_transform(self.POLICY, {})

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
