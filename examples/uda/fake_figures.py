"""Drawn figures for miniature benchmarks: the class determines shape, colour and texture, the domain the style."""

import colorsys
import math
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star")
HUES = 16
TEXTURES = ("plain", "rows", "columns", "checks")
CLASSES = len(SHAPES) * HUES * len(TEXTURES)  # 7 and 16 share no factor, so every class has a figure of its own
STYLES = ("white", "outline", "inverted", "noisy", "tinted", "pale")
SUPERSAMPLING = 2


def draw_figure(label: int, style: str, chance: random.Random, size: int) -> Image.Image:
    """Class `label`, below `CLASSES`, as an RGB image of size x size; place, scale and tilt vary by `chance`."""
    side = SUPERSAMPLING * size
    mask = _shape(SHAPES[label % len(SHAPES)], chance, side)
    hue = 5 * label % HUES / HUES  # neighbouring classes far apart
    colour, shade = _rgb(hue, 1.0), _rgb(hue, 0.45)
    figure = Image.new("RGB", (side, side), colour)
    figure.paste(shade, mask=_texture(TEXTURES[label // (len(SHAPES) * HUES)], side))
    background = Image.new("RGB", (side, side), (235, 235, 235))
    if style == "outline":
        figure = Image.blend(figure, background, 0.6)
        figure.paste(shade, mask=ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(5))))
    image = Image.composite(figure, background, mask).resize((size, size), Image.Resampling.BOX)
    return _restyle(image, style, chance)


def draw_digit(digit: int, chance: random.Random, size: int) -> Image.Image:
    """A digit, ink bright, as a grey image of size x size; place, scale and tilt vary by `chance`."""
    side = SUPERSAMPLING * size
    canvas = Image.new("L", (side, side))
    font = ImageFont.load_default(chance.uniform(0.75, 0.95) * side)
    x, y = (side / 2 + chance.uniform(-0.05, 0.05) * side for _ in "xy")
    ImageDraw.Draw(canvas).text((x, y), str(digit), fill=255, font=font, anchor="mm")
    tilted = canvas.rotate(chance.uniform(-15, 15), resample=Image.Resampling.BILINEAR)
    return tilted.resize((size, size), Image.Resampling.BOX)


def _rgb(hue: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shape(shape: str, chance: random.Random, side: int) -> Image.Image:
    """Mask of the shape: 255 inside."""
    radius = chance.uniform(0.36, 0.46) * side
    x, y = (side / 2 + chance.uniform(-0.05, 0.05) * side for _ in "xy")
    tilt = math.radians(chance.uniform(-8, 8))
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if shape == "ring":
            hole = 0.55 * radius
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        return mask
    points = [(distance * radius, tilt + math.radians(angle)) for distance, angle in _corners(shape)]
    draw.polygon([(x + r * math.sin(angle), y - r * math.cos(angle)) for r, angle in points], fill=255)
    return mask


def _corners(shape: str) -> list[tuple[float, float]]:
    """Distance from the centre, in radii, and angle from the top, in degrees."""
    if shape == "cross":
        arm = math.hypot(1, 0.3), math.degrees(math.atan(0.3))
        return [
            (distance, quarter + angle)
            for quarter in (0, 90, 180, 270)
            for distance, angle in ((arm[0], -arm[1]), (arm[0], arm[1]), (0.3 * math.sqrt(2), 45))
        ]
    if shape == "star":
        return [(1 if point % 2 == 0 else 0.45, 36 * point) for point in range(10)]
    first, corners = {"square": (45, 4), "triangle": (0, 3), "diamond": (0, 4)}[shape]
    return [(1, first + 360 / corners * corner) for corner in range(corners)]


def _texture(texture: str, side: int) -> Image.Image:
    """Mask of the darker parts."""
    row, column = np.indices((side, side)) * 8 // side % 2
    dark = {"plain": np.zeros_like(row), "rows": row, "columns": column, "checks": row ^ column}[texture]
    return Image.fromarray((255 * dark).astype(np.uint8))


def _restyle(image: Image.Image, style: str, chance: random.Random) -> Image.Image:
    if style == "inverted":
        return ImageOps.invert(image)
    if style == "noisy":
        noise = np.random.default_rng(chance.getrandbits(32)).normal(0, 40, (image.height, image.width, 3))
        return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    if style == "tinted":
        return Image.blend(image, Image.new("RGB", image.size, (90, 40, 120)), 0.45)
    if style == "pale":
        return Image.blend(image.filter(ImageFilter.GaussianBlur(1)), Image.new("RGB", image.size, "white"), 0.5)
    return image
