"""The pretraining data of the quickstart's CLIP: a fixed set of rendered digits, each with its caption."""

from dataclasses import dataclass

import torch
from torch import Tensor

from examples.rendered_digits import render_digits
from examples.small_clip import Pretraining


class RenderedImages:
    """Captioned digits, drawn with replacement by torch's global generator, which `pretrained_clip` seeds."""

    def __init__(self, count: int, seed: int) -> None:
        """Render `count` of them."""
        digits = render_digits(count, seed)
        self.captions = sorted(set(digits.captions))
        self._images = digits.images
        self._caption_of = torch.tensor([self.captions.index(caption) for caption in digits.captions])

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Images and the numbers of their captions."""
        chosen = torch.randint(len(self._images), (count,))
        return self._images[chosen], self._caption_of[chosen]


@dataclass(frozen=True)
class RenderedPretraining(Pretraining):
    """Half a minute of two cores."""

    images: int = 6_400

    def captioned_images(self) -> RenderedImages:
        """Render them."""
        return RenderedImages(self.images, self.seed)
