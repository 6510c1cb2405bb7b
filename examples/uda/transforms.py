"""The paper's transforms of each benchmark (App. A, B): what happens to an image before the encoder sees it."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

TransformRole = Literal["source_train", "target_train", "target_strong", "test"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_transform(
    benchmark: str,
    role: TransformRole,
    *,
    task: tuple[str, str],
    image_size: int = 224,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> Callable[[Any], Tensor]:
    """From a PIL image to a normalised float32 (3, image_size, image_size) tensor."""
    raise NotImplementedError


class TwoViews:
    """Weak and strong view of the same image: FixMatch's input (App. B)."""

    def __init__(self, weak: Callable[[Any], Tensor], strong: Callable[[Any], Tensor]) -> None:
        """Keep both transforms."""
        self.weak = weak
        self.strong = strong

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        """The two views."""
        return self.weak(image), self.strong(image)
