"""Training crops of pairs with sparse flow: scaled and stretched, jittered in colour, with holes in the second frame.

Ranges and order are MMFlow's for RAFT on KITTI-2015: holes come before the scaling, which scales them too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from examples.optical_flow.kitti import FlowPair

SCALE_PROBABILITY = 0.8
STRETCH_PROBABILITY = 0.8
SCALE = (-0.2, 0.4)
"""Exponent of 2."""
STRETCH = 0.2
ERASE_PROBABILITY = 0.5
MOST_HOLES = 3
HOLE = (50 / 288, 100 / 288)
"""Sides of a hole before the scaling, relative to the crop's height: 50 to 100 pixels of 288."""


@dataclass(frozen=True)
class SparseFlowAugmentation:
    """Draws from torch's global generator; crops are `height` x `width`."""

    height: int
    width: int

    def __call__(self, pair: FlowPair) -> FlowPair:
        """One random crop. Raises `ValueError` if an image is smaller than the crop before scaling."""
        if pair.valid.shape[0] < self.height or pair.valid.shape[1] < self.width:
            size, crop = "x".join(map(str, pair.valid.shape)), f"{self.height}x{self.width}"
            raise ValueError(f"an image of {size} pixels is smaller than the crop of {crop}")
        return self._crop(self._scale(self._erase(_jitter(pair))))

    def _scale(self, pair: FlowPair) -> FlowPair:
        if _draw() >= SCALE_PROBABILITY:
            return pair
        factor_x = factor_y = 2 ** _between(*SCALE)
        if _draw() < STRETCH_PROBABILITY:
            factor_x *= 2 ** _between(-STRETCH, STRETCH)
            factor_y *= 2 ** _between(-STRETCH, STRETCH)
        height, width = pair.valid.shape
        return resize(pair, max(self.height, round(factor_y * height)), max(self.width, round(factor_x * width)))

    def _crop(self, pair: FlowPair) -> FlowPair:
        height, width = pair.valid.shape
        top = int(torch.randint(height - self.height + 1, ()))
        left = int(torch.randint(width - self.width + 1, ()))
        rows, columns = slice(top, top + self.height), slice(left, left + self.width)
        return FlowPair(*(tensor[..., rows, columns] for tensor in pair))

    def _erase(self, pair: FlowPair) -> FlowPair:
        if _draw() >= ERASE_PROBABILITY:
            return pair
        second = pair.second.clone()
        mean = second.float().mean(dim=(1, 2)).to(torch.uint8)[:, None, None]
        for _ in range(int(torch.randint(1, MOST_HOLES + 1, ()))):
            top, left = (int(torch.randint(side, ())) for side in pair.valid.shape)
            high, wide = (int(_between(*HOLE) * self.height) for _ in range(2))
            second[:, top : top + high, left : left + wide] = mean
        return pair._replace(second=second)


def resize(pair: FlowPair, height: int, width: int) -> FlowPair:
    """Scale images bilinearly and move every flow that is known to its pixel's new place, its length scaled as well.

    Flow that is not known cannot be interpolated; of several flows that meet in one pixel the last is kept.
    """
    old_height, old_width = pair.valid.shape
    images = v2.functional.resize(torch.stack([pair.first, pair.second]), [height, width], antialias=True)
    factor_y, factor_x = height / old_height, width / old_width
    rows, columns = (where.numpy() for where in pair.valid.nonzero(as_tuple=True))
    # pixel centres sit at + 0.5
    new_rows = ((rows + 0.5) * factor_y).astype(int).clip(0, height - 1)
    new_columns = ((columns + 0.5) * factor_x).astype(int).clip(0, width - 1)
    flow, valid = torch.zeros(2, height, width), torch.zeros(height, width, dtype=torch.bool)
    known = pair.flow[:, rows, columns].numpy() * [[factor_x], [factor_y]]
    flow.numpy()[:, new_rows, new_columns] = known  # numpy's assignment is in order, torch's need not be
    valid.numpy()[new_rows, new_columns] = True
    return FlowPair(images[0], images[1], flow, valid)


def _jitter(pair: FlowPair) -> FlowPair:
    """The same change of colours in both frames."""
    images = _COLOURS(torch.stack([pair.first, pair.second]))
    return pair._replace(first=images[0], second=images[1])


_COLOURS = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.5 / 3.14)


def _draw() -> float:
    return float(torch.rand(()))


def _between(low: float, high: float) -> float:
    return low + (high - low) * _draw()


def to_input(images: Tensor) -> Tensor:
    """Pixels 0 to 255, any dtype, as RAFT wants them: float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0
