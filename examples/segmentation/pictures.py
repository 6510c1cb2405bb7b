"""Pictures of a few validation scenes: input, ground truth, before, after."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmkd.segmentation import DenseStudent
from examples.segmentation.classes import IGNORED, colour
from examples.segmentation.domains import Domain, Scene
from examples.segmentation.evaluation import predict
from examples.segmentation.scene_batches import Size, normalise, read_image, read_labels

SCENES = 4


def choose_scenes(domain: Domain, root: Path) -> list[Scene]:
    """Evenly spaced validation scenes."""
    scenes = domain.scenes(root, "val")
    return scenes[:: max(1, len(scenes) // SCENES)][:SCENES]


def predict_all(student: DenseStudent, scenes: Sequence[Scene], size: Size, device: torch.device) -> list[Tensor]:
    """Predictions (h, w) of every scene, in eval mode."""
    student.eval()
    return [predict(student, scene, size, device) for scene in scenes]


@torch.no_grad()
def digest_views(student: DenseStudent, scenes: Sequence[Scene], size: Size, device: torch.device) -> str:
    """SHA-256 of all log-probabilities of the scenes: a merged network must have the trained one's, on one machine."""
    digest = hashlib.sha256()
    for scene in scenes:
        log_p = student(normalise(read_image(scene, size))[None].to(device))
        digest.update(log_p.cpu().numpy().tobytes())
    return digest.hexdigest()


def draw(
    domain: Domain, scenes: Sequence[Scene], before: Sequence[Tensor], after: Sequence[Tensor], size: Size, path: Path
) -> None:
    """One row a scene: its picture, its labels, and both predictions, black where there is no label."""
    rows = []
    for scene, first, last in zip(scenes, before, after, strict=True):
        labels = read_labels(domain, scene, size)
        known = (labels != IGNORED)[..., None]
        predictions = [colour(prediction.numpy().astype(np.uint8)) * known for prediction in (first, last)]
        rows.append(np.hstack([read_image(scene, size), colour(labels), *predictions]))
    Image.fromarray(np.vstack(rows).astype(np.uint8)).save(path)
