"""Approximate top-r % selection on an accelerator, without the host waiting for a number.

A sample gives the boundary, as a tensor that stays on the device of the weights. In half precision many changes equal
the boundary; the sample gives the share of them to keep, and a hash of the position selects them, the same in every
process.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rst.numerics import kernels
from rst.numerics.rounding import tensor_at_most, wide_dtype
from rst.training.projection import Project
from rst.training.projection_eager import flat_views
from rst.training.sampled_boundary import choose_sample

if TYPE_CHECKING:
    from rst.training.projection_triton import TritonProjection

_HALF = (torch.float16, torch.bfloat16)
_CHUNK = 1 << 24
_HASH, _HASH_BITS = 2654435761, 16  # Knuth's multiplier


@torch.no_grad()
def keep_about_(
    tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], ratio: float, project: Project, *, step: int
) -> Tensor | None:
    """Keep approximately the top `ratio` of all changes, in place; reset every other weight to w0, bit for bit.

    Args:
        tuned: wt by name, on accelerators.
        base: w0 by name, same shapes, dtypes and devices.
        ratio: the share, in (0, 1].
        project: applies Eq. 17 to weights that are not in half precision.
        step: training step; determines which weights are sampled.

    Returns:
        The boundary, of shape (); None if every weight is kept.
    """
    if ratio >= 1:
        return None
    in_launches = _in_launches(tuned, project)
    value, lucky = _estimate(tuned, base, ratio, step, in_launches=in_launches is not None)
    for dtype in dict.fromkeys(weight.dtype for weight in tuned.values()):
        names = [name for name, weight in tuned.items() if weight.dtype == dtype]
        bound = tensor_at_most(value, dtype)
        if dtype not in _HALF:
            project(((tuned[name], base[name]) for name in names), bound)
            continue
        # no change of this dtype equals a boundary that it cannot hold; and what did not change is not kept
        limit = torch.where((value > 0) & (bound == value), lucky * (1 << _HASH_BITS), 0)
        flats = []
        for name in names:
            flat = flat_views(tuned[name], base[name])
            if flat is None:
                project([(tuned[name], base[name])], bound)
            elif in_launches:
                flats.append(flat)
            else:
                _keep_lucky_(*flat, bound, limit)
        if in_launches and flats:
            from rst.training.boundary_triton import keep_lucky

            keep_lucky(in_launches, flats, bound, limit)
    return value


def _in_launches(tuned: Mapping[str, Tensor], project: Project) -> "TritonProjection | None":
    """Return the projection if Triton kernels run on the device and w0 is beside all weights."""
    if not all(kernels.run_on(weight.device) for weight in tuned.values()):
        return None
    from rst.training.projection_triton import TritonProjection

    return project if isinstance(project, TritonProjection) else None


def _estimate(
    tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], ratio: float, step: int, *, in_launches: bool
) -> tuple[Tensor, Tensor]:
    """Return the boundary, and the share of changes equal to it to keep; both of shape ()."""
    first, stride = choose_sample(sum(weight.numel() for weight in tuned.values()), ratio, step)
    wide = wide_dtype(*(weight.dtype for weight in tuned.values()))
    device = next(iter(tuned.values())).device
    pairs = [flat_views(weight, base[name]) for name, weight in tuned.items()] if in_launches else []
    flats = [pair for pair in pairs if pair]
    if len(flats) == len(tuned) and {weight.device for weight in tuned.values()} == {device}:
        from rst.training.boundary_triton import estimate

        return estimate(flats, ratio, first, stride)
    parts = []
    for name, weight in tuned.items():
        flat = flat_views(weight, base[name]) or (weight.reshape(-1), base[name].reshape(-1))
        change = (flat[0][first::stride] - flat[1][first::stride]).abs_()
        parts.append(change.nan_to_num_(nan=0.0, posinf=float("inf")).to(device, wide))
    sample = torch.cat(parts)
    above = round(ratio * sample.numel())
    if not above:
        return torch.full((), float("inf"), dtype=wide, device=device), torch.zeros((), device=device)
    largest = sample.topk(above, sorted=False).values
    value = largest.amin()
    equal = (sample == value).sum()
    return value, (above - (largest > value).sum()) / equal


def _keep_lucky_(weight: Tensor, origin: Tensor, value: Tensor, limit: Tensor) -> None:
    value, limit = value.to(weight.device), limit.to(weight.device)
    for start in range(0, weight.numel(), _CHUNK):
        part, part_origin = weight[start : start + _CHUNK], origin[start : start + _CHUNK]
        change = (part - part_origin).abs_()
        positions = torch.arange(start, start + part.numel(), device=weight.device)
        unlucky = (positions * _HASH >> _HASH_BITS & (1 << _HASH_BITS) - 1) >= limit
        reset = (change < value) | ((change == value) & unlucky)
        torch.where(reset, part_origin, part, out=part)
