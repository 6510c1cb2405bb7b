"""Autograd's count of writes, for weights that are swapped out and back between a forward pass and its backward pass.

Autograd records the count of each tensor with the graph, and runs the backward pass only if the count is still the
same. A swap and its reversal restore the elements that the graph was made with, so the count is restored too. In
between, the count has a value far from those of ordinary writes, so that autograd rejects a graph made from the
elements of that time once they are gone.
"""

from collections.abc import Iterable
from itertools import count

import torch
from torch import Tensor

_FIRST = 1 << 31  # the count has 32 bits and starts at 0
_APART = 1 << 12  # leaves room for writes to the elements that were swapped in
_fresh = count()


class SwapVersion:
    """The counts of a tensor, with and without the elements that are swapped in."""

    __slots__ = ("left", "return_to")

    def __init__(self) -> None:
        """Start before the first swap."""
        self.left: int | None = None
        self.return_to = 0

    def after(self, before: int) -> int:
        """Return the count after a swap, given the count `before` it."""
        untouched = before == self.left  # since the last swap, so the elements from before it are back
        return self.return_to if untouched else _FIRST + next(_fresh) * _APART % _FIRST


class CountedSwap:
    """The counts of all tensors of one swap: recorded before it, set after it, and reset if it failed."""

    def __init__(self, tensors: Iterable[tuple[Tensor, SwapVersion]]) -> None:
        """Record the counts, except of tensors made in inference mode, for which torch counts no writes."""
        counted = [(tensor, known) for tensor, known in tensors if not tensor.is_inference()]
        self._tensors = tuple([tensor for tensor, _ in counted])
        self._known = [known for _, known in counted]
        self._before = tuple([tensor._version for tensor in self._tensors])
        self._noted = [(known.left, known.return_to) for known in self._known]

    def done(self) -> None:
        """Set the counts after the swap, which autograd does not see."""
        after = tuple(map(SwapVersion.after, self._known, self._before))
        for known, left, return_to in zip(self._known, after, self._before, strict=True):
            known.left, known.return_to = left, return_to
        _set_counts(self._tensors, after)

    def undone(self) -> None:
        """Reset the counts to those before the swap."""
        for known, (left, return_to) in zip(self._known, self._noted, strict=True):
            known.left, known.return_to = left, return_to
        _set_counts(self._tensors, self._before)


def _set_counts(tensors: tuple[Tensor, ...], counts: tuple[int, ...]) -> None:
    torch._C._autograd._unsafe_set_version_counter(tensors, counts)
