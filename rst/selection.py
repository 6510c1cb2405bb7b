"""Which changes survive: by threshold (Eq. 17), the top r % (App. M), or biases only (App. M)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rst.config import RSTConfig
from rst.errors import NonFiniteError
from rst.kth_magnitude import kth_largest
from rst.projection import Backend, project_


@torch.no_grad()
def select_(
    tuned: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    config: RSTConfig,
    progress: float,
    backend: Backend = "eager",
) -> Tensor:
    """Reset, in place, every weight that the configuration does not keep to its pretrained value, bit for bit.

    Args:
        tuned: wt by name, changed in place.
        base: w0 by name, same shapes, dtypes and devices; read tensor by tensor.
        config: what to keep.
        progress: position in the run, in [0, 1], for schedules.
        backend: how Eq. 17 is computed; the bits are the same.

    Returns:
        The number of weights kept, an int64 tensor of shape ().

    Raises:
        NonFiniteError: with `select="top"`, a weight is NaN: its change has no rank.
    """
    if config.select == "top":
        return _select_top(tuned, base, config.ratio_at(progress))
    if config.select == "bias":
        return _select_bias(tuned, base)
    pairs = ((weight, base[name]) for name, weight in tuned.items())
    return project_(pairs, config.threshold_at(progress), backend)


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias by its name: `bias`, and fused ones such as `in_proj_bias`."""
    return name.rpartition(".")[2].endswith("bias")


def _select_bias(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Tensor:
    kept = 0
    for name, weight in tuned.items():
        if is_bias(name):
            kept += weight.numel()
        else:
            weight.copy_(base[name])
    return torch.tensor(kept)


def _select_top(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], ratio: float) -> Tensor:
    """Keep exactly `round(ratio * N)` of the N weights, fewer only where fewer changed.

    Of equal changes at the boundary the first are kept, in the order of the parameters and of their elements, so the
    result does not depend on the machine.
    """
    budget = round(ratio * sum(weight.numel() for weight in tuned.values()))
    kth, above = float("inf"), 0
    if budget:
        widest = torch.float64 if any(weight.dtype == torch.float64 for weight in tuned.values()) else torch.float32
        kth, above = kth_largest(lambda: (change for _, change in _changes(tuned, base)), budget, widest)
    ties_left = budget - above
    kept = torch.zeros((), dtype=torch.int64)
    for name, change in _changes(tuned, base):
        keep = (change > kth).reshape(-1)
        if ties_left and kth > 0:
            ties = (change == kth).reshape(-1).nonzero().squeeze(1)[:ties_left]
            ties_left -= ties.numel()
            keep[ties] = True
        tuned[name].copy_(torch.where(keep.view_as(change), tuned[name], base[name]))
        kept += keep.sum().cpu()
    return kept


def _changes(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, weight in tuned.items():
        change = (weight - base[name]).abs()
        # An infinite weight that stayed where it was has not changed, though inf - inf is NaN.
        change = torch.where(weight == base[name], torch.zeros_like(change), change)
        if change.isnan().any():
            raise NonFiniteError(f"{name}: {int(change.isnan().sum())} of {change.numel()} weights are NaN")
        yield name, change
