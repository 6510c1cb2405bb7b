"""A base and a tuned model under one name, on which every layout and tool is measured."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks import vit_b_16
from rst.numerics.exactness import bits

SWEEP = "ViT-B/16"  # in the names of pairs with its shapes, which cover all densities
TAU = 1e-6  # of the synthetic changes, tau * (1 + Exp(1))


@dataclass(frozen=True)
class Counts:
    """What is left to know of a pair once it was measured: `tensors` are those that changed."""

    name: str
    dtype: torch.dtype
    drawn: bool
    weights: int
    changed: int
    tensors: int


@dataclass(frozen=True)
class CheckpointPair:
    """Two state dicts with the same names, shapes and dtype.

    Attributes:
        name: the row's name in the tables.
        base: w0.
        tuned: wt.
        drawn: whether the changes were drawn as `vit_b_16.tuned` does, with tau = `TAU`.
    """

    name: str
    base: dict[str, Tensor]
    tuned: dict[str, Tensor]
    drawn: bool = False

    @cached_property
    def positions(self) -> dict[str, Tensor]:
        """Flat positions of the changed weights, int64, of every tensor that changed."""
        found = {
            name: (bits(self.base[name]) != bits(tensor)).view(-1).nonzero().view(-1)
            for name, tensor in self.tuned.items()
        }
        return {name: where for name, where in found.items() if where.numel()}

    @property
    def changed(self) -> int:
        """Number of changed weights."""
        return sum(where.numel() for where in self.positions.values())

    def counts(self) -> Counts:
        """The pair without its weights."""
        dtype = next(iter(self.base.values())).dtype
        weights = sum(tensor.numel() for tensor in self.base.values())
        return Counts(self.name, dtype, self.drawn, weights, self.changed, len(self.positions))

    def at_changes(self, side: dict[str, Tensor]) -> dict[str, Tensor]:
        """The values of one side at the changed positions, 1-D."""
        return {name: side[name].view(-1)[where] for name, where in self.positions.items()}


def synthetic(base: dict[str, Tensor], density: float, shape_name: str = SWEEP) -> CheckpointPair:
    """A pair whose changes are spread evenly and drawn by `vit_b_16.tuned`."""
    dtype = str(next(iter(base.values())).dtype).removeprefix("torch.")
    name = f"{dtype}, {100 * density:g} % of {shape_name}, synthetic"
    return CheckpointPair(name, base, vit_b_16.tuned(base, density, TAU), drawn=True)


def convolutions(density: float, layers: int) -> CheckpointPair:
    """A synthetic float32 pair of 4-D weights (256, 256, 3, 3), as residual networks have them."""
    generator = torch.Generator().manual_seed(0)
    shape = (256, 256, 3, 3)
    deviation = math.sqrt(2 / (256 * 9))
    base = {f"layers.{i}.weight": torch.randn(shape, generator=generator) * deviation for i in range(layers)}
    return synthetic(base, density, "3 x 3 convolutions")
