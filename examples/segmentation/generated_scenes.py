"""Generated street scenes with exact labels, in the layouts of GTA5, Cityscapes and ACDC and in three styles.

They replace data that cannot be shipped: every reader, crop and metric runs as on the real files. They are not a
benchmark, and scores on them say nothing about the real data.
"""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from examples.segmentation.classes import CLASSES, FILE_IDS, Labels
from examples.segmentation.domains import ACDC, CITYSCAPES, GTA5

SIZE = (128, 64)
"""Width and height."""

PAINT = {
    "sky": (120, 180, 235),
    "building": (150, 110, 90),
    "vegetation": (60, 140, 60),
    "road": (90, 90, 95),
    "sidewalk": (190, 170, 165),
    "car": (200, 40, 40),
    "person": (230, 190, 60),
    "pole": (40, 40, 45),
    "traffic_sign": (240, 240, 40),
}
"""Colour of each class that occurs."""


def draw_labels(chance: random.Random) -> Labels:
    """Train ids (H, W) of a street: sky, houses, trees, road, pavement, cars, people, and now and then a sign."""
    width, height = SIZE
    canvas = Image.new("L", SIZE, _id("sky"))
    draw = ImageDraw.Draw(canvas)
    horizon = chance.randint(height // 3, height // 2)
    left = 0
    while left < width:
        right = left + chance.randint(14, 34)
        draw.rectangle((left, chance.randint(2, horizon - 6), right, horizon + 4), fill=_id("building"))
        left = right + chance.choice([0, 0, 8])
    for _ in range(chance.randint(1, 3)):
        x, r = chance.randint(0, width), chance.randint(6, 11)
        draw.ellipse((x - r, horizon - r, x + r, horizon + r // 2), fill=_id("vegetation"))
    edge = horizon + 4
    draw.rectangle((0, edge, width, height), fill=_id("sidewalk"))
    middle = chance.randint(width // 3, 2 * width // 3)
    draw.polygon([(middle - 8, edge), (middle + 8, edge), (width + 10, height), (-10, height)], fill=_id("road"))
    for _ in range(chance.randint(1, 3)):
        x, y, w = chance.randint(4, width - 26), chance.randint(edge + 2, height - 14), chance.randint(14, 24)
        draw.rectangle((x, y, x + w, y + w // 2), fill=_id("car"))
    for _ in range(chance.randint(1, 3)):
        x, y = chance.randint(3, width - 6), chance.randint(edge - 6, height - 18)
        draw.ellipse((x, y, x + 4, y + 4), fill=_id("person"))
        draw.rectangle((x - 1, y + 4, x + 5, y + 15), fill=_id("person"))
    for _ in range(chance.randint(1, 2)):
        x, top = chance.randint(4, width - 10), chance.randint(8, horizon - 4)
        draw.rectangle((x, top, x + 2, edge + 6), fill=_id("pole"))
        if chance.random() < 0.4:
            draw.rectangle((x - 4, top, x + 6, top + 8), fill=_id("traffic_sign"))
    return np.asarray(canvas)


def render(labels: Labels, style: str, chance: random.Random) -> NDArray[np.uint8]:
    """A picture (H, W, 3) of the labels: "rendered" is clean and bright, "camera" duller, blurred and noisy, "night"
    dark and blue.
    """
    palette = np.zeros((256, 3))
    for name, colour in PAINT.items():
        shade = chance.uniform(0.85, 1.15)
        palette[_id(name)] = [min(255, shade * value + chance.uniform(-12, 12)) for value in colour]
    noise = np.random.default_rng(chance.getrandbits(32))
    pixels = palette[labels] + noise.normal(0, 4, (*labels.shape, 3))
    if style != "rendered":
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = 0.55 * pixels + 0.45 * grey + noise.normal(0, 14, pixels.shape)
        pixels = pixels * [0.75, 0.85, 0.7] + 20
    if style == "night":
        pixels = pixels * [0.5, 0.5, 0.7] + [0, 0, 25]
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if style != "rendered":
        picture = picture.filter(ImageFilter.GaussianBlur(0.8))
    return np.asarray(picture)


def write_scenes(root: Path, *, train: int = 40, val: int = 12, seed: int = 0) -> None:
    """Write `train` training scenes of every data set and `val` validation scenes, each into its real layout."""
    ids = np.asarray(FILE_IDS, dtype=np.uint8)
    layouts: list[tuple[str, str, Callable[[str, int], str], Callable[[Labels], Labels], Callable[[str], str]]] = [
        (GTA5.name, "rendered", lambda split, i: f"images/{i:05}.png", lambda y: ids[y], GTA5.labels_of),
        (
            CITYSCAPES.name,
            "camera",
            lambda split, i: f"leftImg8bit/{split}/town/town_{i:06}_000019_leftImg8bit.png",
            lambda y: ids[y],
            CITYSCAPES.labels_of,
        ),
        (
            ACDC.name,
            "night",
            lambda split, i: f"rgb_anon/night/{split}/GOPR0001/GOPR0001_{i:06}_rgb_anon.png",
            lambda y: y,
            ACDC.labels_of,
        ),
    ]
    for name, style, image_path, to_file, labels_of in layouts:
        for split, count in (("train", train), ("val", val)):
            if split == "val" and name == GTA5.name:
                continue
            for number in range(count):
                chance = random.Random(f"{seed}/{name}/{split}/{number}")
                labels = draw_labels(chance)
                path = image_path(split, number)
                _write(root / name / path, render(labels, style, chance))
                _write(root / name / labels_of(path), to_file(labels))


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _id(name: str) -> int:
    return CLASSES.index(name)
