"""The pretraining data of the digits benchmark's CLIP: rendered, distorted, captioned digits without real images."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from examples.rendered_digits import CLASSES, IMAGE_SIZE, as_input, prompt
from examples.small_clip import Pretraining

GLYPH_SIZE = 64
FONTS = {
    "DejaVuSans.ttf": "sans",
    "DejaVuSans-Oblique.ttf": "oblique sans",
    "DejaVuSansMono.ttf": "mono",
    "DejaVuSerif.ttf": "serif",
    "DejaVuSerif-Italic.ttf": "italic serif",
    "STIXGeneral.ttf": "serif",
    "STIXGeneralItalic.ttf": "italic serif",
    "cmr10.ttf": "serif",
    "cmss10.ttf": "sans",
    "cmtt10.ttf": "mono",
}
STROKES = {0: "", 2: "bold ", 4: "heavy "}  # pixels of GLYPH_SIZE added around the ink


@dataclass(frozen=True)
class DistortedPretraining(Pretraining):
    """As long as the quickstart's: more steps make a teacher that leaves little to adapt.

    The paper's CLIP is right on about half of the digits.
    """

    learning_rate: float = 2e-3

    def captioned_images(self) -> "DistortedImages":
        """Draw the glyphs."""
        return DistortedImages(self.seed)


class DistortedImages:
    """Glyphs, distorted anew at every draw, so that none is seen twice; half the captions name the font too."""

    def __init__(self, seed: int) -> None:
        """Render the glyphs, and seed the draws."""
        self._glyphs = glyphs = render_glyphs()
        self.captions = sorted({prompt(digit) for digit in range(CLASSES)} | set(glyphs.captions))
        self._plain = torch.tensor([self.captions.index(prompt(digit)) for digit in glyphs.labels.tolist()])
        self._styled = torch.tensor([self.captions.index(caption) for caption in glyphs.captions])
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Images and the numbers of their captions."""
        chosen = torch.randint(len(self._glyphs.labels), (count,), generator=self._generator)
        images = as_input(distort(self._glyphs.images[chosen], self._generator))
        names_style = torch.rand(count, generator=self._generator) < 0.5
        return images, torch.where(names_style, self._styled[chosen], self._plain[chosen])


class Glyphs(NamedTuple):
    """Every digit in every font and stroke: grey images (N, 64, 64) in [0, 1], labels (N,) int64, captions."""

    images: Tensor
    labels: Tensor
    captions: list[str]


def render_glyphs() -> Glyphs:
    """Draw every digit once in every font and stroke width, upright, its ink filling the middle of the image."""
    images, labels, captions = [], [], []
    for font, family in FONTS.items():
        for stroke, weight in STROKES.items():
            for digit in range(CLASSES):
                images.append(_draw(digit, font, stroke))
                labels.append(digit)
                captions.append(f"{prompt(digit)}, {weight}{family}")
    return Glyphs(torch.from_numpy(np.stack(images)).float() / 255, torch.tensor(labels), captions)


def _draw(digit: int, font: str, stroke: int) -> np.ndarray:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    face = ImageFont.truetype(path, size=56)
    canvas = Image.new("L", (2 * GLYPH_SIZE, 2 * GLYPH_SIZE))
    middle = (GLYPH_SIZE, GLYPH_SIZE)
    ImageDraw.Draw(canvas).text(middle, str(digit), fill=255, font=face, anchor="mm", stroke_width=stroke)
    left, top, right, bottom = canvas.getbbox() or (0, 0, *canvas.size)
    half = GLYPH_SIZE // 2
    x, y = (left + right) // 2 - half, (top + bottom) // 2 - half
    return np.asarray(canvas.crop((x, y, x + GLYPH_SIZE, y + GLYPH_SIZE)))


def distort(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Make glyphs (B, 64, 64) look written: images (B, 32, 32) in [0, 1].

    Size, aspect, slant, tilt and place by an affine map, wobbling strokes by a smooth displacement, then blur, faint
    ink, and noise; every draw is the generator's.
    """
    size = len(glyphs)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    tilt, slant = uniform(-0.35, 0.35), uniform(-0.5, 0.5)  # radians; columns moved a row
    wide, high = uniform(0.7, 1.5), uniform(0.75, 1.25)  # pixels of the glyph a pixel of the image
    cos, sin = tilt.cos(), tilt.sin()
    theta = torch.stack(
        [
            torch.stack([wide * cos, wide * (slant * cos - sin), uniform(-0.12, 0.12)], dim=1),
            torch.stack([high * sin, high * (slant * sin + cos), uniform(-0.12, 0.12)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [size, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    wobble = torch.randn(size, 2, 5, 5, generator=generator) * uniform(0.0, 0.12)[:, None, None, None]
    wobble = F.interpolate(wobble, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)
    images = F.grid_sample(glyphs[:, None], grid + wobble.permute(0, 2, 3, 1), align_corners=False)

    blurred = F.avg_pool2d(images, 3, stride=1, padding=1)
    share = uniform(0.0, 1.0)[:, None, None, None]
    images = (1 - share) * images + share * blurred
    images = images * uniform(0.7, 1.2)[:, None, None, None]
    images = images + torch.randn(images.shape, generator=generator) * uniform(0.0, 0.08)[:, None, None, None]
    return images.clamp(0, 1).squeeze(1)
