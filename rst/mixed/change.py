"""The changes that adapters make to one tensor of the base, in the forms that a mixed batch computes with."""

from collections.abc import Iterable, Iterator, Mapping
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
        """Return the whole tuned tensor, in new memory or in the change's own. `base` is not modified."""
        ...


@dataclass(frozen=True)
class WholeChange:
    """A tensor that the adapter stores whole."""

    tensor: Tensor

    def tuned(self, base: Tensor) -> Tensor:
        """Return the adapter's tensor."""
        return self.tensor


class SparseChange:
    """The changed elements of a tensor, seen as a matrix of its first dimension by all others.

    Attributes:
        positions: the flat positions of the changed elements, sorted, shape (nnz,), int64.
        rows, columns: their rows and columns, shape (nnz,), int64.
        values: wt at these positions, shape (nnz,), in the tensor's dtype.
        residual: wt - w0 at these positions, shape (nnz,), in float32, or in float64 for a tensor of that dtype.
        shape: the tensor's shape.
    """

    def __init__(self, positions: Tensor, origin: Tensor, values: Tensor, shape: tuple[int, ...]) -> None:
        """Take sorted flat positions (nnz,), and w0 (`origin`) and wt (`values`) at these positions."""
        # Residuals are added to a product, so they are rounded only once, together with it.
        wide = torch.float64 if values.dtype == torch.float64 else torch.float32
        width = prod(shape[1:])
        self.rows, self.columns = positions // width, positions % width
        self.values, self.residual, self.shape = values, values.to(wide) - origin.to(wide), shape
        self.positions = positions
        self._taps: dict[int, tuple[Tensor, ...]] = {}

    def tuned(self, base: Tensor) -> Tensor:
        """Return a tuned copy of the tensor."""
        copy = base.detach().clone(memory_format=torch.contiguous_format)
        copy.view(-1)[self.positions] = self.values
        return copy

    @cached_property
    def by_row(self) -> Bags:
        """Return the form for `W x`, where rows are the outputs."""
        return Bags.of(self.rows, self.columns, self.residual)

    @cached_property
    def by_column(self) -> Bags:
        """Return the form for `x W`, where columns are the outputs."""
        # The sort is stable, so the entries of a column stay in the order of their rows, in which its sum is defined.
        columns, order = self.columns.sort(stable=True)
        return Bags.of(columns, self.rows[order], self.residual[order])

    def taps(self, groups: int) -> tuple[Tensor, ...]:
        """Return each element's input channel and place in the kernel, for a weight (out, in / groups, *kernel)."""
        if groups not in self._taps:
            outputs, inputs, *kernel = self.shape
            channel, *place = torch.unravel_index(self.columns, (inputs, *kernel))
            self._taps[groups] = (channel + self.rows // (outputs // groups) * inputs, *place)
        return self._taps[groups]


@dataclass(frozen=True)
class Varying:
    """A tensor that differs between adapters.

    Attributes:
        name: the name of the parameter or buffer, for messages.
        base: the tensor under adapters that do not change it.
        changes: the changes by adapter.
    """

    name: str
    base: Tensor
    changes: dict[str, Change]

    def under(self, adapter: str | None) -> Tensor:
        """Return the tensor as this adapter has it, or for None as the base has it."""
        change = None if adapter is None else self.changes.get(adapter)
        return self.base if change is None else change.tuned(self.base)

    def in_turn(self, adapters: Iterable[str]) -> Iterator[Tensor]:
        """Yield the tensor as each adapter has it. All sparse changes are made to one copy of the base.

        So what is yielded holds only until the next one, and must not be part of a graph for autograd.
        """
        copy: Tensor | None = None
        for adapter in adapters:
            change = self.changes.get(adapter)
            if not isinstance(change, SparseChange):
                yield self.under(adapter)
                continue
            if copy is None:
                copy = self.base.detach().clone(memory_format=torch.contiguous_format)
            flat = copy.view(-1)
            before = flat[change.positions]
            flat[change.positions] = change.values
            yield copy
            flat[change.positions] = before

    @cached_property
    def sparse(self) -> Mapping[str, SparseChange] | None:
        """Return the changes if all of them are sparse and can be added, else None."""
        changes = {name: change for name, change in self.changes.items() if isinstance(change, SparseChange)}
        addable = self.base.is_floating_point() and len(changes) == len(self.changes)
        return changes if addable else None
