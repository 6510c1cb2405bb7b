"""GTA5, Cityscapes and ACDC as their publishers lay them out: which images, which labels, and a check of both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from examples.segmentation.classes import CLASSES, IGNORED, Labels, train_ids
from examples.uda.benchmarks import DatasetError


@dataclass(frozen=True)
class Scene:
    """One image and its labels, as files."""

    image: Path
    labels: Path


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One data set of street scenes.

    Attributes:
        name: as in the configurations; also its folder under the root.
        title: for people.
        counts: number of images of every split.
        images: glob of a split's images inside the folder, with "{split}".
        labels_of: an image's path inside the folder to that of its labels.
        read: numbers in a label file to train ids.
        layout: the tree of files that the folder must hold.
        download: what to download, from where.
    """

    name: str
    title: str
    counts: Mapping[str, int]
    images: str
    labels_of: Callable[[str], str]
    read: Callable[[Labels], Labels]
    layout: str
    download: str

    def scenes(self, root: Path, split: str) -> list[Scene]:
        """All scenes of a split, in the order of their names."""
        folder = root / self.name
        found = sorted(folder.glob(self.images.format(split=split)))
        return [Scene(path, folder / self.labels_of(path.relative_to(folder).as_posix())) for path in found]

    def read_labels(self, scene: Scene) -> Labels:
        """Train ids (H, W) of a scene. Raises `DatasetError` naming a file that holds something else."""
        numbers = np.asarray(Image.open(scene.labels))
        if numbers.ndim != 2 or numbers.dtype != np.uint8:
            raise DatasetError(
                f"{scene.labels} must hold one 8-bit number a pixel, got {numbers.dtype} of shape {numbers.shape}"
            )
        return self.read(numbers)

    def check(self, root: Path, splits: list[str], *, counts: bool = True) -> None:
        """Refuse files that are not as published, before anything is trained on them.

        Args:
            root: holds the folder `name`.
            splits: those that a run needs.
            counts: whether the number of images must be the published one; generated scenes have fewer.

        Raises:
            DatasetError: naming what is missing or wrong, and what to download.
        """
        if problems := [problem for split in splits for problem in self._problems(root, split, counts)]:
            found = "".join(f"  {problem}\n" for problem in problems)
            folder = root / self.name
            raise DatasetError(
                f"{self.title} at {folder} is not as expected:\n{found}{self.download}\n"
                f"{folder} must hold:\n{self.layout}"
            )

    def _problems(self, root: Path, split: str, counts: bool) -> list[str]:
        scenes = self.scenes(root, split)
        if not scenes:
            return [f"{split}: no image matches {self.images.format(split=split)}"]
        problems = []
        if counts and len(scenes) != self.counts[split]:
            problems.append(f"{split}: {len(scenes)} images, expected {self.counts[split]}")
        missing = [scene for scene in scenes if not scene.labels.exists()]
        if missing:
            return [*problems, f"{split}: {len(missing)} images have no labels, first {missing[0].labels}"]
        with Image.open(scenes[0].image) as image, Image.open(scenes[0].labels) as labels:
            if image.size != labels.size:
                problems.append(f"{split}: {scenes[0].image} is {image.size}, its labels are {labels.size}")
        if not (self.read_labels(scenes[0]) != IGNORED).any():
            problems.append(f"{split}: {scenes[0].labels} has none of the {len(CLASSES)} classes")
        return problems


GTA5 = Domain(
    name="gta5",
    title="GTA5",
    counts={"train": 24_966},
    images="images/*.png",
    labels_of=lambda image: image.replace("images/", "labels/", 1),
    read=train_ids,
    layout="images/00001.png ... 24966.png\nlabels/00001.png ... (numbers of Cityscapes' label ids)\n",
    download="Download the ten parts of images and of labels from https://download.visinf.tu-darmstadt.de/data/from_games/",
)

CITYSCAPES = Domain(
    name="cityscapes",
    title="Cityscapes",
    counts={"train": 2_975, "val": 500},
    images="leftImg8bit/{split}/*/*_leftImg8bit.png",
    labels_of=lambda image: image.replace("leftImg8bit/", "gtFine/", 1).replace("_leftImg8bit", "_gtFine_labelIds"),
    read=train_ids,
    layout="leftImg8bit/{train,val}/CITY/*_leftImg8bit.png\ngtFine/{train,val}/CITY/*_gtFine_labelIds.png\n",
    download="Register at https://www.cityscapes-dataset.com, "
    "download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
)

ACDC = Domain(
    name="acdc",
    title="ACDC",
    counts={"train": 1_600, "val": 406},
    images="rgb_anon/*/{split}/*/*_rgb_anon.png",
    labels_of=lambda image: image.replace("rgb_anon/", "gt/", 1).replace("_rgb_anon", "_gt_labelTrainIds"),
    read=lambda numbers: numbers,
    layout="rgb_anon/{fog,night,rain,snow}/{train,val}/RECORDING/*_rgb_anon.png\n"
    "gt/{fog,night,rain,snow}/{train,val}/RECORDING/*_gt_labelTrainIds.png\n",
    download="Register at https://acdc.vision.ee.ethz.ch, download rgb_anon_trainvaltest.zip and gt_trainval.zip",
)

DOMAINS = {domain.name: domain for domain in (GTA5, CITYSCAPES, ACDC)}
"""By name."""


def get_domain(name: str) -> Domain:
    """Look a domain up. Raises `ValueError` naming the known ones."""
    if name not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {name!r}")
    return DOMAINS[name]
