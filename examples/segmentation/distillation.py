"""CMKD on a network's own loss (App. L): labels of the EMA teacher and of both heads, on class-mixed images."""

import random

import torch
from torch import Tensor

from cmkd.segmentation import DenseCMKD, DenseStudent, PixelViews
from examples.segmentation.class_mix import disturb, draw_masks, paste
from examples.segmentation.scene_batches import SceneBatch
from examples.segmentation.scene_objective import SceneObjective, source_loss


class Distillation(SceneObjective):
    """`source_weight * source loss + CMKD` (App. L, Eq. 17)."""

    def __init__(
        self,
        student: DenseStudent,
        *,
        momentum: float,
        source_weight: float,
        cmkd_weight: float,
        ramp_iterations: int,
    ) -> None:
        """Copy the pretrained student; see `Settings` for the arguments."""
        super().__init__()
        self.cmkd = DenseCMKD(student, momentum=momentum, weight=cmkd_weight, max_iterations=ramp_iterations)
        self._source_weight = source_weight

    def losses(self, student: DenseStudent, batch: SceneBatch, *, iteration: int) -> dict[str, Tensor]:
        """The source's loss and CMKD's; pasted source pixels have their own label in both of CMKD's terms."""
        views = self.cmkd.views(batch.target_images)
        chance = random.Random(f"{batch.seed}/mix")
        masks = draw_masks(batch.source_labels, chance)
        mixed = PixelViews(
            task=paste(masks, batch.source_labels, views.task),
            distill=paste(masks, batch.source_labels, views.distill),
            alpha=paste(masks, torch.ones_like(views.alpha), views.alpha),
        )
        output = student.head(student.encoder(disturb(paste(masks, batch.source_images, batch.target_images), chance)))
        terms = self.cmkd(lambda labels, weights: student.loss(output, labels, weights), mixed, iteration=iteration)
        source = source_loss(student, batch.source_images, batch.source_labels)
        return {"source": self._source_weight * source, "cmkd": terms.total}

    def after_step(self, student: DenseStudent) -> None:
        """Move the teacher."""
        self.cmkd.update(student)
