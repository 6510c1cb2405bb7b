"""Mean intersection over union on the target's validation split, at the labels' own size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from cmkd.segmentation import DenseStudent
from examples.segmentation.classes import CLASSES, IGNORED
from examples.segmentation.domains import Domain, Scene
from examples.segmentation.scene_batches import Size, normalise, read_image


@dataclass(frozen=True)
class Scores:
    """One point of the curve.

    Attributes:
        miou: mean of `per_class`, in per cent.
        per_class: IoU in per cent of every class that the labels have.
        threshold: tau of RST's last projection; None without RST.
        kept: share of the sparsely trained weights that differ from the pretrained ones; None without RST.
    """

    miou: float
    per_class: dict[str, float]
    threshold: float | None = None
    kept: float | None = None


@torch.no_grad()
def predict(student: DenseStudent, scene: Scene, size: Size, device: torch.device) -> Tensor:
    """Train ids (h, w) of a scene that was resized to `size`; the student should be in eval mode."""
    images = normalise(read_image(scene, size))[None].to(device)
    return student(images).argmax(dim=1)[0].cpu()


@torch.no_grad()
def score(
    student: DenseStudent, domain: Domain, scenes: Sequence[Scene], size: Size, device: torch.device
) -> tuple[float, dict[str, float]]:
    """mIoU and the IoU of every class that the labels have, in per cent.

    Args:
        student: in eval mode, on the device.
        domain: reads the labels.
        scenes: the split.
        size: width and height to which images are resized; predictions are enlarged to the labels' size.
        device: where to compute.
    """
    metric = MulticlassJaccardIndex(len(CLASSES), average=None, ignore_index=IGNORED).to(device)
    present = torch.zeros(256, dtype=torch.bool)
    for scene in scenes:
        labels = torch.from_numpy(domain.read_labels(scene).astype("int64"))
        images = normalise(read_image(scene, size))[None].to(device)
        height, width = labels.shape
        log_p = student.log_view(student.head(student.encoder(images)), (height, width))
        metric.update(log_p.argmax(dim=1), labels[None].to(device))
        present[labels.unique()] = True
    by_name = zip(CLASSES, metric.compute().tolist(), present.tolist(), strict=False)
    per_class = {name: 100 * share for name, share, here in by_name if here}
    return sum(per_class.values()) / len(per_class), per_class
