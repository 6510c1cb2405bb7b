"""Views of a scanned digit: as it is, moved a little (weak), or moved, bent and partly hidden (strong)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_SIZE = 32


@dataclass(frozen=True)
class DigitView:
    """From a grey PIL image to the small CLIP's input: float32 (3, 32, 32) in [-1, 1], enlarged, moved at random.

    Chance is torch's default generator. All moves are one resampling.

    Attributes:
        shift: at most this far in each direction, as a share of the image.
        tilt: at most this many degrees either way.
        scale: at most this factor larger or smaller.
        slant: at most this shear either way.
        hidden: side of a dark square at a random place, in pixels.
    """

    shift: float = 0.0
    tilt: float = 0.0
    scale: float = 1.0
    slant: float = 0.0
    hidden: int = 0

    def __call__(self, image: Image.Image) -> Tensor:
        """Draw one view."""
        size = (IMAGE_SIZE, IMAGE_SIZE)
        moved = image.convert("L").transform(
            size, Image.Transform.AFFINE, self._draw_map(image.width), Image.Resampling.BILINEAR
        )
        pixels = torch.from_numpy(np.array(moved)).float() / 127.5 - 1
        if self.hidden:
            top, left = torch.randint(IMAGE_SIZE - self.hidden + 1, (2,)).tolist()
            pixels[top : top + self.hidden, left : left + self.hidden] = -1
        return pixels.expand(3, -1, -1).contiguous()

    def _draw_map(self, side: int) -> tuple[float, ...]:
        """Draw the affine map from this view's pixels to the image's, both measured from their middles."""
        right, down, tilt, scale, slant = (2 * torch.rand(5) - 1).tolist()
        angle = math.radians(self.tilt) * tilt
        step = side / IMAGE_SIZE * self.scale**scale
        cos, sin = step * math.cos(angle), step * math.sin(angle)
        a, b = cos, cos * self.slant * slant - sin
        c, d = sin, sin * self.slant * slant + cos
        x, y = side * (0.5 + self.shift * right), side * (0.5 + self.shift * down)
        half = IMAGE_SIZE / 2
        return (a, b, x - half * (a + b), c, d, y - half * (c + d))


PLAIN_VIEW = DigitView()
WEAK_VIEW = DigitView(shift=0.06, tilt=10, scale=1.1)
STRONG_VIEW = DigitView(shift=0.1, tilt=25, scale=1.25, slant=0.3, hidden=10)
