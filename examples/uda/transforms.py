"""The paper's transforms of each benchmark (App. A, B), applied to images before the encoder."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from cmkd import PRESETS, Preset
from examples.uda.rand_augment import GREY, RandAugment

TransformRole = Literal["source_train", "target_train", "target_strong", "test"]
ROLES = ("source_train", "target_train", "target_strong", "test")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Steps = list[Callable[[Any], Any]]


def build_transform(
    benchmark: str,
    role: TransformRole,
    *,
    task: tuple[str, str],
    image_size: int = 224,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
    preset: Preset = PRESETS["paper"],
) -> Callable[[Any], Tensor]:
    """From a PIL image to a normalised float32 tensor (3, image_size, image_size). Torch's generator decides it all.

    Args:
        benchmark: name of the benchmark.
        role: "source_train" and "target_train" are the training pipelines (FixMatch's weak view is the target's),
            "target_strong" is FixMatch's strong view, "test" the deterministic one.
        task: source and target, e.g. ("U", "M"): the digits' training pipelines differ from task to task.
        image_size: side of the result. The paper's is 224, and its other sizes keep their ratio to it.
        mean: of each channel; CLIP's if left out.
        std: of each channel; CLIP's if left out.
        preset: its `strong_resize`, `strong_fill` and `view_geometry` count.

    Raises:
        ValueError: if the benchmark or the role is unknown.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {benchmark!r}")
    if role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    if role == "target_strong":
        steps = _strong(benchmark, image_size, preset, fill=mean if preset.strong_fill == "mean" else GREY)
    elif benchmark == "visda2017":
        steps = _visda(role, image_size, preset)
    else:
        steps = PIPELINES[benchmark](role, task, image_size)
    as_tensor: Steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    transform: Callable[[Any], Tensor] = v2.Compose([_rgb, *steps, *as_tensor])
    return transform


class TwoViews:
    """Weak and strong view of the same image: FixMatch's input (App. B)."""

    def __init__(self, weak: Callable[[Any], Tensor], strong: Callable[[Any], Tensor]) -> None:
        """Keep both transforms."""
        self.weak = weak
        self.strong = strong

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """The two views."""
        return self.weak(image), self.strong(image)


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _photos(role: TransformRole, task: tuple[str, str], size: int) -> Steps:
    # Printed as Resize(224) and Resize(256). With a single number photos keep their proportions, and without the crop
    # that the test pipeline lacks they would not stack: both sides are meant.
    if role == "test":
        return [v2.Resize((size, size))]
    larger = round(size * 256 / 224)
    return [v2.Resize((larger, larger)), v2.RandomCrop(size), v2.RandomHorizontalFlip()]


def _visda(role: TransformRole, size: int, preset: Preset) -> Steps:
    flip: Steps = [] if role == "test" else [v2.RandomHorizontalFlip()]
    return [_resize(size, preset), *flip, v2.CenterCrop(size)]


def _resize(side: int, preset: Preset) -> v2.Resize:
    """The shorter side, or both: the released code's lists of two numbers squash every photo to a square."""
    return v2.Resize(side if preset.view_geometry == "crop" else (side, side))


def _digits(role: TransformRole, task: tuple[str, str], size: int) -> Steps:
    if role == "test":
        return [v2.Resize((size, size))]
    if role == "source_train" and task == ("U", "M"):
        return [
            v2.Resize((28, 28)),
            v2.Pad(4),
            v2.RandomCrop(28),
            v2.RandomRotation(10),
            v2.Resize((size, size)),
        ]
    # A scale up to 1.2 asks for more than the image. torchvision draws again when a crop does not fit, and takes the
    # whole image after ten times: the printed numbers run, and mean that whole images are frequent.
    return [v2.RandomResizedCrop(size, scale=(0.75, 1.2))]


def _strong(benchmark: str, size: int, preset: Preset, *, fill: tuple[float, float, float]) -> Steps:
    """App. B's for every benchmark, flipped digits included."""
    resize = 224 if benchmark == "visda2017" else preset.strong_resize
    return [
        _resize(round(size * resize / 224), preset),
        v2.CenterCrop(size),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0),
        RandAugment(fill),
    ]


PIPELINES: dict[str, Callable[[TransformRole, tuple[str, str], int], Steps]] = {
    "office_home": _photos,
    "office_home_partial": _photos,
    "office31": _photos,
    "imageclef_da": _photos,
    "domainnet": _photos,
    "digits": _digits,
    "pacs": _photos,
}
"""Everything between the conversion to RGB and the tensor, by benchmark; PACS, not in the paper, as other photos.

VisDA-2017's depends on the preset: `_visda`."""

BENCHMARKS = (*PIPELINES, "visda2017")
