"""End-point error and KITTI's share of outliers, over the pixels that have a ground truth."""

from dataclasses import dataclass

import torch
from torch import Tensor

OUTLIER_PIXELS = 3.0
OUTLIER_SHARE = 0.05


@dataclass(frozen=True)
class FlowScores:
    """Scores of a set of image pairs.

    Attributes:
        epe: mean end-point error in pixels over all valid pixels of all pairs (MMFlow's, so the paper's).
        epe_per_image: mean over pairs of each pair's own mean (RAFT's and torchvision's on KITTI).
        fl_all: per cent of all valid pixels whose error is over 3 pixels and over 5 % of the true flow's length.
    """

    epe: float
    epe_per_image: float
    fl_all: float


class FlowMeter:
    """Collects pairs one by one."""

    def __init__(self) -> None:
        """Begin with none."""
        self._sums: list[tuple[float, int, int]] = []

    def add(self, prediction: Tensor, flow: Tensor, valid: Tensor) -> None:
        """Add one pair.

        Args:
            prediction: (2, H, W) in pixels.
            flow: ground truth (2, H, W), anything where it is not valid.
            valid: bool (H, W), with at least one pixel.

        Raises:
            ValueError: shapes that do not fit, or no valid pixel.
        """
        if prediction.shape != flow.shape or flow.shape[0] != 2 or valid.shape != flow.shape[1:]:
            shapes = f"prediction {tuple(prediction.shape)}, flow {tuple(flow.shape)}, valid {tuple(valid.shape)}"
            raise ValueError(f"want (2, H, W) twice and (H, W), got {shapes}")
        if not valid.any():
            raise ValueError("a pair has no pixel with ground truth")
        truth = flow[:, valid].double()
        error = (prediction[:, valid].double() - truth).norm(dim=0)
        outliers = (error > OUTLIER_PIXELS) & (error > OUTLIER_SHARE * truth.norm(dim=0))
        self._sums.append((error.sum().item(), int(outliers.sum()), error.numel()))

    def scores(self) -> FlowScores:
        """Scores of all pairs so far. Raises `ValueError` where there is none."""
        if not self._sums:
            raise ValueError("no pair to score")
        errors, outliers, pixels = torch.tensor(self._sums, dtype=torch.float64).T
        return FlowScores(
            epe=(errors.sum() / pixels.sum()).item(),
            epe_per_image=(errors / pixels).mean().item(),
            fl_all=100 * (outliers.sum() / pixels.sum()).item(),
        )
