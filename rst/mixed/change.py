"""What adapters make of one tensor of the base, in the forms that a mixed batch computes with."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from rst.numerics.bags import Bags


class Change(Protocol):
    """One adapter's change of one tensor."""

    def tuned(self, base: Tensor) -> Tensor:
        """The whole tuned tensor, in new memory or the change's own. `base` is left alone."""
        ...


@dataclass(frozen=True)
class WholeChange:
    """A tensor that the adapter has whole."""

    tensor: Tensor

    def tuned(self, base: Tensor) -> Tensor:
        """The adapter's tensor."""
        return self.tensor


class SparseChange:
    """The changed elements of a tensor, seen as a matrix: its first dimension against all others.

    Attributes:
        positions: flat, of each changed element, sorted, shape (nnz,), int64.
        rows, columns: of each, shape (nnz,), int64.
        values: wt there, shape (nnz,), in the tensor's dtype.
        residual: wt - w0 there, shape (nnz,), in float32, or in float64 for a tensor of that dtype.
        shape: the tensor's shape.
    """

    def __init__(self, positions: Tensor, origin: Tensor, values: Tensor, shape: tuple[int, ...]) -> None:
        """Take flat positions (nnz,), sorted, with w0 (`origin`) and wt (`values`) there."""
        # Residuals are added to a product, so they are rounded once, with it, and not before.
        wide = torch.float64 if values.dtype == torch.float64 else torch.float32
        width = prod(shape[1:])
        self.rows, self.columns = positions // width, positions % width
        self.values, self.residual, self.shape = values, values.to(wide) - origin.to(wide), shape
        self.positions = positions
        self._taps: dict[int, tuple[Tensor, ...]] = {}

    def tuned(self, base: Tensor) -> Tensor:
        """A tuned copy of the tensor."""
        copy = base.detach().clone(memory_format=torch.contiguous_format)
        copy.view(-1)[self.positions] = self.values
        return copy

    @cached_property
    def by_row(self) -> Bags:
        """For `W x`: rows are the outputs."""
        return Bags.of(self.rows, self.columns, self.residual)

    @cached_property
    def by_column(self) -> Bags:
        """For `x W`: columns are the outputs."""
        # Stable, so that the entries of a column stay in the order of their rows, as its sum is defined.
        columns, order = self.columns.sort(stable=True)
        return Bags.of(columns, self.rows[order], self.residual[order])

    def taps(self, groups: int) -> tuple[Tensor, ...]:
        """For a convolution's weight (out, in / groups, *kernel): input channel and place in the kernel of each."""
        if groups not in self._taps:
            outputs, inputs, *kernel = self.shape
            channel, *place = torch.unravel_index(self.columns, (inputs, *kernel))
            self._taps[groups] = (channel + self.rows // (outputs // groups) * inputs, *place)
        return self._taps[groups]


@dataclass(frozen=True)
class Varying:
    """A tensor that is another one under each adapter.

    Attributes:
        name: the parameter's or buffer's, for messages.
        base: the tensor under adapters that do not change it.
        changes: by adapter.
    """

    name: str
    base: Tensor
    changes: dict[str, Change]

    def under(self, adapter: str | None) -> Tensor:
        """The tensor as this adapter has it, or as the base has it (None)."""
        change = None if adapter is None else self.changes.get(adapter)
        return self.base if change is None else change.tuned(self.base)

    @cached_property
    def sparse(self) -> Mapping[str, SparseChange] | None:
        """The changes if all of them are sparse and can be added, else None."""
        changes = {name: change for name, change in self.changes.items() if isinstance(change, SparseChange)}
        addable = self.base.is_floating_point() and len(changes) == len(self.changes)
        return changes if addable else None
