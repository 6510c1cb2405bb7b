"""The 19 classes of Cityscapes: numbers, names, colours, and their numbers in the files of each data set."""

import numpy as np
from numpy.typing import NDArray

IGNORED = 255
"""The label of pixels that are neither trained on nor scored."""

CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic_light",
    "traffic_sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorbike",
    "bike",
)
"""In the order of the train ids, with the names of the paper's tables."""

FILE_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""What `*_labelIds.png` of Cityscapes and the label files of GTA5 have for each class; other numbers are ignored."""

COLOURS = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)
"""Cityscapes' colour of each class."""

Labels = NDArray[np.uint8]
"""Train ids (H, W), or `IGNORED`."""

_TRAIN_ID = np.full(256, IGNORED, dtype=np.uint8)
_TRAIN_ID[list(FILE_IDS)] = range(len(CLASSES))


def train_ids(file_ids: Labels) -> Labels:
    """Train ids of the numbers in a label file of Cityscapes or GTA5; everything else is `IGNORED`."""
    return _TRAIN_ID[file_ids]


def colour(labels: Labels) -> NDArray[np.uint8]:
    """Labels (H, W) as a picture (H, W, 3) in Cityscapes' colours; ignored pixels are black."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(COLOURS)] = COLOURS
    return palette[labels]
