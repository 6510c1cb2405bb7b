"""Self-training as in DACS (Tranheden et al. 2021) and DAFormer (Hoyer et al. 2022): an EMA teacher labels, the
student learns from class-mixed images.

DAFormer's feature distance to the ImageNet encoder is left out: the paper does not mention it.
"""

import random

import torch
from torch import Tensor

from cmkd.segmentation import DenseStudent, EMATeacher
from examples.segmentation.class_mix import disturb, draw_masks, paste
from examples.segmentation.scene_batches import SceneBatch
from examples.segmentation.scene_objective import SceneObjective, source_loss


class SelfTraining(SceneObjective):
    """Source loss, and the loss on target images with source classes pasted in, by the teacher's labels."""

    def __init__(
        self, student: DenseStudent, *, momentum: float, pseudo_threshold: float, ignore_rows: tuple[int, int]
    ) -> None:
        """Start the teacher as a copy of the student; see `Settings` for the arguments."""
        super().__init__()
        self.teacher = EMATeacher(student, momentum, warm_up=True)
        self._pseudo_threshold = pseudo_threshold
        self._ignore_rows = ignore_rows

    def losses(self, student: DenseStudent, batch: SceneBatch, *, iteration: int) -> dict[str, Tensor]:
        """The two losses; the second one's target pixels weigh as much as the teacher is sure."""
        labels, weights = self.label(batch.target_images)
        chance = random.Random(f"{batch.seed}/mix")
        masks = draw_masks(batch.source_labels, chance)
        images = disturb(paste(masks, batch.source_images, batch.target_images), chance)
        mixed_labels = paste(masks, batch.source_labels, labels)
        mixed_weights = paste(masks, torch.ones_like(weights), weights)
        output = student.head(student.encoder(images))
        return {
            "source": source_loss(student, batch.source_images, batch.source_labels),
            "mixed": student.loss(output, mixed_labels, mixed_weights),
        }

    def label(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's labels (B, H, W), and weights (B, H, W): the batch's share of pixels that it is sure of."""
        confidence, labels = self.teacher(images).exp().max(dim=1)
        share = (confidence >= self._pseudo_threshold).float().mean()
        weights = share.expand(labels.shape).clone()
        top, bottom = self._ignore_rows
        weights[:, :top] = 0
        weights[:, labels.shape[1] - bottom :] = 0
        return labels, weights

    def after_step(self, student: DenseStudent) -> None:
        """Move the teacher."""
        self.teacher.update(student)
