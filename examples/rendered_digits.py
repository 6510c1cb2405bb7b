"""The source domain: captioned digits rendered in the fonts that matplotlib ships."""

import random
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CLASSES = 10
IMAGE_SIZE = 32
SUPERSAMPLING = 2
MAX_TILT = 25.0  # degrees
FONTS = {
    "DejaVuSans.ttf": "sans",
    "DejaVuSans-Bold.ttf": "bold sans",
    "DejaVuSans-Oblique.ttf": "oblique sans",
    "DejaVuSansMono.ttf": "mono",
    "DejaVuSansMono-Bold.ttf": "bold mono",
    "DejaVuSansMono-Oblique.ttf": "oblique mono",
    "DejaVuSerif.ttf": "serif",
    "DejaVuSerif-Bold.ttf": "bold serif",
    "DejaVuSerif-Italic.ttf": "italic serif",
}


@dataclass(frozen=True)
class CaptionedDigits:
    """Images (N, 3, 32, 32) float32 in [-1, 1], labels (N,) int64, and a caption for each."""

    images: Tensor
    labels: Tensor
    captions: list[str]


def prompt(digit: int) -> str:
    """The paper's prompt for digits (Sec. IV.A)."""
    return f"a photo of the number: {digit}"


def render_digits(count: int, seed: int) -> CaptionedDigits:
    """Render `count` digits in random fonts, sizes, places and tilts; half the captions name the font too."""
    chance = random.Random(seed)
    labels = [i % CLASSES for i in range(count)]
    chance.shuffle(labels)
    fonts = [chance.choice(list(FONTS)) for _ in labels]
    pixels = np.stack([_draw(digit, font, chance) for digit, font in zip(labels, fonts, strict=True)])
    captions = [
        chance.choice([prompt(digit), f"{prompt(digit)}, {FONTS[font]}"])
        for digit, font in zip(labels, fonts, strict=True)
    ]
    return CaptionedDigits(as_input(torch.from_numpy(pixels) / 255), torch.tensor(labels), captions)


def as_input(grey: Tensor) -> Tensor:
    """Turn grey images (N, 32, 32) in [0, 1], ink bright, into the model's three channels in [-1, 1]."""
    return (2 * grey.float() - 1).unsqueeze(1).repeat(1, 3, 1, 1)


def _draw(digit: int, font: str, chance: random.Random) -> np.ndarray:
    side = SUPERSAMPLING * IMAGE_SIZE
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    face = ImageFont.truetype(path, size=SUPERSAMPLING * chance.randint(26, 42))
    canvas = Image.new("L", (side, side))
    x, y = (side / 2 + SUPERSAMPLING * chance.uniform(-2, 2) for _ in "xy")
    ImageDraw.Draw(canvas).text((x, y), str(digit), fill=255, font=face, anchor="mm")
    tilted = canvas.rotate(chance.uniform(-MAX_TILT, MAX_TILT), resample=Image.Resampling.BILINEAR)
    return np.asarray(tilted.resize((IMAGE_SIZE, IMAGE_SIZE), resample=Image.Resampling.BOX))
