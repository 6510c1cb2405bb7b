"""Eq. 17 in place: every weight that moved by no more than tau goes back to its pretrained value, bit for bit."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Elements a chunk: with its difference and mask it stays in a core's second-level cache.
_CHUNK = 1 << 16


@torch.no_grad()
def project_(tuned: Sequence[Tensor], base: Sequence[Tensor], threshold: float) -> Tensor:
    """Reset, in place, the entries of `tuned` with `|wt - w0| <= threshold` to those of `base`.

    The difference is computed in the weights' own dtype and `threshold` rounded to it, so the result is that of
    `torch.where((wt - w0).abs() > threshold, wt, w0)`, except that a NaN stays where it is for the export to find.

    Args:
        tuned: wt, one tensor a parameter, of any real floating dtype; changed in place.
        base: w0, same shapes, dtypes and devices.
        threshold: tau, at least 0.

    Returns:
        The number of weights kept, an int64 tensor of shape () on the device of the first weight.
    """
    device = tuned[0].device if tuned else torch.device("cpu")
    kept = torch.zeros((), dtype=torch.int64, device=device)
    for weight, origin in zip(tuned, base, strict=True):
        flat = _flat_views(weight.detach(), origin)
        if flat is None:
            kept += _project_whole(weight, origin, threshold).to(device)
        else:
            kept += _project_chunks(*flat, threshold).to(device)
    return kept


def _flat_views(weight: Tensor, origin: Tensor) -> tuple[Tensor, Tensor] | None:
    """View both tensors as 1-D in the weight's memory order (channels-last included); None if one has gaps."""
    order = sorted(range(weight.ndim), key=weight.stride, reverse=True)
    pair = weight.permute(order), origin.permute(order)
    if all(view.is_contiguous() for view in pair):
        return pair[0].view(-1), pair[1].view(-1)
    return None


def _project_chunks(weight: Tensor, origin: Tensor, threshold: float) -> Tensor:
    kept = torch.zeros((), dtype=torch.int64, device=weight.device)
    size = min(_CHUNK, weight.numel()) if weight.device.type == "cpu" else weight.numel()
    difference = torch.empty(size, dtype=weight.dtype, device=weight.device)
    reset = torch.empty(size, dtype=torch.bool, device=weight.device)
    for start in range(0, weight.numel(), size or 1):
        part, part_origin = weight[start : start + size], origin[start : start + size]
        part_difference, part_reset = difference[: part.numel()], reset[: part.numel()]
        torch.sub(part, part_origin, out=part_difference).abs_()
        torch.le(part_difference, threshold, out=part_reset)
        torch.where(part_reset, part_origin, part, out=part)
        kept += part.numel() - part_reset.sum()
    return kept


def _project_whole(weight: Tensor, origin: Tensor, threshold: float) -> Tensor:
    reset = (weight - origin).abs() <= threshold
    weight.copy_(torch.where(reset, origin, weight))
    return weight.numel() - reset.sum()
