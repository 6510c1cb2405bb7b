"""The released transforms' geometry, and RandAugment's fill colour."""

from unittest.mock import patch

import torch
from PIL import Image
from torchvision.transforms import v2

from cmkd import PRESETS
from examples.uda import transforms
from examples.uda.rand_augment import RandAugment
from examples.uda.transforms import CLIP_MEAN, build_transform
from tests.parity.numbers import Case, Differences

TASKS = {"visda2017": ("synthetic", "real"), "office_home": ("Ar", "Cl")}


def views(name: str, case: Case) -> Differences:
    found = Differences()
    if name == "rand_augment":
        found.equal("fill_colour", RandAugment(CLIP_MEAN).fill, case["fill_colour"])
        return found
    image = Image.fromarray(case["image"].permute(1, 2, 0).to(torch.uint8).numpy())
    for key, benchmark, role in (
        ("visda_test", "visda2017", "test"),
        ("visda_train_unflipped", "visda2017", "source_train"),
        ("office_home_test", "office_home", "test"),
        ("visda_strong_geometry", "visda2017", "target_strong"),
        ("strong_geometry", "office_home", "target_strong"),
    ):
        here = _view(image, benchmark, role)
        found.values[key] = float((here - case[key]).abs().max())  # in levels of 255
    return found


def _view(image: Image.Image, benchmark: str, role: str) -> torch.Tensor:
    """One view in levels, its random steps left out."""

    def still(*arguments: object, **options: object) -> v2.Identity:
        return v2.Identity()

    with (
        patch.object(v2, "RandomHorizontalFlip", still),
        patch.object(v2, "ColorJitter", still),
        patch.object(transforms, "RandAugment", still),
    ):
        official = PRESETS["official"]
        transform = build_transform(
            benchmark, role, task=TASKS[benchmark], mean=(0,) * 3, std=(1,) * 3, preset=official
        )
        return (255 * transform(image)).double()
