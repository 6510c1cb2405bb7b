"""Fewer entries of a change: those of largest magnitude (TIES), or a random share, rescaled (DARE)."""

import torch
from torch import Tensor

Entries = tuple[Tensor, Tensor]
"""Sorted positions and the residuals there, both of shape (nnz,)."""


def largest(entries: Entries, density: float) -> Entries:
    """Keep the `int(density * nnz)` residuals of largest magnitude; among equals, those that come first."""
    indices, values = entries
    kept = int(density * indices.numel())
    order = values.abs().argsort(descending=True, stable=True)
    places = order[:kept].sort().values
    return indices[places], values[places]


def random_share(entries: Entries, density: float, generator: torch.Generator | None) -> Entries:
    """Keep each residual with probability `density` and divide it by that, so that the expected change is the same.

    An unchanged weight stays unchanged whether it is drawn or not: this is DARE (Yu et al., 2024) on the dense
    difference, at the cost of the changed entries alone.
    """
    indices, values = entries
    drawn = torch.rand(indices.numel(), generator=generator, device=generator.device if generator else None)
    places = (drawn < density).nonzero().squeeze(1).to(indices.device)
    return indices[places], values[places] / density
