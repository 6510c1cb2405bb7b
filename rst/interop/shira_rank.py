"""The rank that determines how many entries each layer of a SHiRA adapter has, chosen to hold given layers.

SHiRA (Bhardwaj et al., 2024) in PEFT stores exactly `r * (in + out)` entries of every layer's weight, with one r for
all layers. PEFT does not load any other number, nor an r that exceeds a layer's weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A weight of shape (rows, columns) with `nnz` entries to store."""

    nnz: int
    rows: int
    columns: int

    def slots(self, rank: int) -> int:
        """Return the number of entries that PEFT requires for this layer."""
        return rank * (self.rows + self.columns)

    @property
    def lowest_rank(self) -> int:
        """The lowest rank with enough slots."""
        return max(1, -(-self.nnz // (self.rows + self.columns)))

    def holds(self, rank: int) -> bool:
        """Return whether the changed entries fit the slots, and the slots fit the weights."""
        return self.lowest_rank <= rank and self.slots(rank) <= self.rows * self.columns


def choose_rank(layers: Mapping[str, Layer]) -> int:
    """Return the lowest rank that holds all layers; if there is none, the lowest of those that hold most entries."""
    candidates = sorted({layer.lowest_rank for layer in layers.values()} | {1})
    return max(candidates, key=lambda rank: (_held(layers, rank), -rank))


def _held(layers: Mapping[str, Layer], rank: int) -> int:
    return sum(layer.nnz for layer in layers.values() if layer.holds(rank))
