"""The one number that says how many entries each layer of a SHiRA adapter has, chosen to hold given layers.

SHiRA (Bhardwaj et al., 2024) as PEFT has it stores exactly `r * (in + out)` entries of every layer's weight, with one r
for all layers, and refuses to load any other number, and any r that exceeds a layer's weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A weight of shape (rows, columns), `nnz` of whose entries are to be stored."""

    nnz: int
    rows: int
    columns: int

    def slots(self, rank: int) -> int:
        """Number of entries that PEFT wants for this layer."""
        return rank * (self.rows + self.columns)

    @property
    def lowest_rank(self) -> int:
        """The rank at which there are slots enough."""
        return max(1, -(-self.nnz // (self.rows + self.columns)))

    def holds(self, rank: int) -> bool:
        """Whether the changed entries have slots, and the slots have weights to be for."""
        return self.lowest_rank <= rank and self.slots(rank) <= self.rows * self.columns


def choose_rank(layers: Mapping[str, Layer]) -> int:
    """The lowest rank that holds all layers; where there is none, the lowest of those that hold most entries."""
    candidates = sorted({layer.lowest_rank for layer in layers.values()} | {1})
    return max(candidates, key=lambda rank: (_held(layers, rank), -rank))


def _held(layers: Mapping[str, Layer], rank: int) -> int:
    return sum(layer.nnz for layer in layers.values() if layer.holds(rank))
