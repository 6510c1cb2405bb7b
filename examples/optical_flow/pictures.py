"""Pictures of predictions: frame, ground truth, before and after training, with flows in the colour wheel."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import flow_to_image

from examples.optical_flow.kitti import FlowPair


def draw_prediction(pair: FlowPair, before: Tensor, after: Tensor, path: Path) -> None:
    """Write one PNG, four panels from top to bottom: first frame, ground truth (black where unknown), before, after.

    Hue is direction, saturation is length; full saturation is the longest true flow in all three.

    Args:
        pair: images, flow and mask.
        before: the starting weights' flow (2, H, W) in pixels.
        after: the trained network's.
        path: to write.
    """
    longest = pair.flow[:, pair.valid].norm(dim=0).max()
    flows = torch.stack([pair.flow, before, after])
    lengths = flows.norm(dim=1, keepdim=True)
    truth, *predicted = flow_to_image(flows * (longest / lengths.clamp(min=1e-6)).clamp(max=1.0))
    truth = truth.where(pair.valid, torch.zeros_like(truth))
    to_pil_image(torch.cat([pair.first, truth, *predicted], dim=1)).save(path)
