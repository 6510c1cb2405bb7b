"""Mask2Former's own loss with a weight per pixel; with all weights 1 it equals the library's."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss, sample_point

Matches = list[tuple[Tensor, Tensor]]
"""For each image, the matched queries and their masks (Hungarian matching)."""


class Weights(NamedTuple):
    """Of the pixels (B, 1, H, W), and their mean over each mask, (N,) an image."""

    pixels: Tensor
    masks: list[Tensor]


class WeightedMaskLoss(Mask2FormerLoss):  # type: ignore[misc]  # transformers is not typed
    """`Mask2FormerLoss` whose terms are linear in the weights of the pixels.

    The cross entropy of a mask takes the weight of each sampled point. A mask's dice loss and its query's class loss
    take the mean weight over the mask; a query without a mask takes the mean over the image.
    """

    weights: Weights | None = None

    def weigh(self, pixels: Tensor, masks: list[Tensor]) -> None:
        """Set the weights of the next losses.

        Args:
            pixels: (B, H, W).
            masks: the labels' masks (N, H, W) of each image, of 0 and 1.
        """
        means = [
            (mask * weights).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)
            for mask, weights in zip(masks, pixels, strict=True)
        ]
        self.weights = Weights(pixels[:, None], means)

    def loss_masks(
        self, masks_queries_logits: Tensor, mask_labels: list[Tensor], indices: Matches, num_masks: Tensor
    ) -> dict[str, Tensor]:
        """Cross entropy and dice of the matched masks at sampled points."""
        assert self.weights is not None
        images, queries = self._get_predictions_permutation_indices(indices)
        chosen = [(image, masks) for image, (_, masks) in enumerate(indices)]
        predicted = masks_queries_logits[images, queries][:, None]
        wanted = torch.cat([mask_labels[image][masks] for image, masks in chosen])[:, None]
        with torch.no_grad():
            points = self.sample_points_using_uncertainty(
                predicted, self.calculate_uncertainty, self.num_points, self.oversample_ratio,
                self.importance_sample_ratio,
            )  # fmt: skip
            y = sample_point(wanted, points, align_corners=False).squeeze(1)
            # the masks fade to 0 at the image's border, as in the library; the weights must not
            pixels = self.weights.pixels[images]
            of_points = sample_point(pixels, points, align_corners=False, padding_mode="border").squeeze(1)
            of_masks = torch.cat([self.weights.masks[image][masks] for image, masks in chosen])
        x = sample_point(predicted, points, align_corners=False).squeeze(1)

        p = x.sigmoid()
        dice = 1 - (2 * (p * y).sum(dim=1) + 1) / (p.sum(dim=1) + y.sum(dim=1) + 1)
        cross_entropy = F.binary_cross_entropy_with_logits(x, y, reduction="none")
        return {
            "loss_mask": (of_points * cross_entropy).mean(dim=1).sum() / num_masks,
            "loss_dice": (of_masks * dice).sum() / num_masks,
        }

    def loss_labels(
        self, class_queries_logits: Tensor, class_labels: list[Tensor], indices: Matches
    ) -> dict[str, Tensor]:
        """Cross entropy of every query's class; normalised by the classes' own weights alone."""
        assert self.weights is not None
        wanted = torch.full(class_queries_logits.shape[:2], self.num_labels, device=class_queries_logits.device)
        of_queries = self.weights.pixels.mean(dim=(1, 2, 3))[:, None].repeat(1, wanted.shape[1])
        for image, (queries, masks) in enumerate(indices):
            wanted[image, queries] = class_labels[image][masks]
            of_queries[image, queries] = self.weights.masks[image][masks]
        losses = F.cross_entropy(
            class_queries_logits.transpose(1, 2), wanted, weight=self.empty_weight, reduction="none"
        )
        return {"loss_cross_entropy": (of_queries * losses).sum() / self.empty_weight[wanted].sum()}
