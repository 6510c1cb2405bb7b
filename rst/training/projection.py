"""Eq. 17 in place: every weight that moved by no more than tau goes back to its pretrained value, bit for bit.

Two backends give the same bits: `eager` works everywhere, `compiled` reads each weight and its origin once and writes
once.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from rst.training.projection_compiled import compiles, project_compiled
from rst.training.projection_eager import project_eager

Backend = Literal["compiled", "eager"]
Pair = tuple[Tensor, Tensor]

# Compiling costs seconds once; with fewer weights than this it would not earn them back.
_WORTH_COMPILING = 1 << 24


def choose_backend(tuned: Sequence[Tensor]) -> Backend:
    """Compile where that works and there are enough weights, all on one device, to earn the wait of some seconds."""
    enough = sum(weight.numel() for weight in tuned) >= _WORTH_COMPILING
    one_device = len({weight.device for weight in tuned}) == 1
    return "compiled" if enough and one_device and compiles(tuned[0].device, tuned[0].dtype) else "eager"


@torch.no_grad()
def project_(pairs: Iterable[Pair], threshold: float, backend: Backend) -> None:
    """Reset, in place, the weights with `|wt - w0| <= threshold` to w0.

    The difference is computed in the weights' own dtype and `threshold` rounded to it, so the result is that of
    `torch.where((wt - w0).abs() > threshold, wt, w0)`, except that a NaN stays where it is for the export to find.

    Args:
        pairs: `(wt, w0)` of each parameter, asked for one after another: same shape, dtype and device, any real
            floating dtype. wt is changed in place.
        threshold: tau, at least 0.
        backend: see `choose_backend`.
    """
    project = project_compiled if backend == "compiled" else project_eager
    project(_flatten(pairs, threshold), threshold)


def _flatten(pairs: Iterable[Pair], threshold: float) -> Iterator[Pair]:
    """Yield 1-D views; a pair whose memory has gaps is projected here."""
    for weight, origin in pairs:
        if flat := _flat_views(weight.detach(), origin):
            yield flat
        else:
            weight.copy_(torch.where((weight - origin).abs() <= threshold, origin, weight))


def _flat_views(weight: Tensor, origin: Tensor) -> Pair | None:
    """View both tensors as 1-D in the weight's memory order (channels-last included); None if one has gaps."""
    order = sorted(range(weight.ndim), key=weight.stride, reverse=True)
    pair = weight.permute(order), origin.permute(order)
    if all(view.is_contiguous() for view in pair):
        return pair[0].view(-1), pair[1].view(-1)
    return None
