"""Autograd's count of writes, for weights that step aside and come back between a forward and its backward pass.

Autograd notes each tensor's count with the graph and goes backward only if it is still the same. A swap there and back
leaves the elements that the graph was made with, so the count goes back with them. What stands there meanwhile has a
count that ordinary writes do not come near: a graph made from those elements is refused once they are gone.
"""

from collections.abc import Iterable
from itertools import count

import torch
from torch import Tensor

_FIRST = 1 << 31  # the count has 32 bits and starts at 0
_APART = 1 << 12  # leaves room for writes to the elements that were swapped in
_fresh = count()


class SwapVersion:
    """The counts of a tensor with and without the elements that are swapped in."""

    __slots__ = ("left", "return_to")

    def __init__(self) -> None:
        """Start before the first swap."""
        self.left: int | None = None
        self.return_to = 0

    def after(self, before: int) -> int:
        """The count after a swap; `before` it was this one."""
        untouched = before == self.left  # nobody wrote since the last swap, so the elements before that one are back
        return self.return_to if untouched else _FIRST + next(_fresh) * _APART % _FIRST


class CountedSwap:
    """The counts of all tensors of one swap, noted before it, set after it, and set back if it failed."""

    def __init__(self, tensors: Iterable[tuple[Tensor, SwapVersion]]) -> None:
        """Note the counts. Torch counts no writes to tensors that were made in inference mode; these are left out."""
        counted = [(tensor, known) for tensor, known in tensors if not tensor.is_inference()]
        self._tensors = tuple([tensor for tensor, _ in counted])
        self._known = [known for _, known in counted]
        self._before = tuple([tensor._version for tensor in self._tensors])
        self._noted = [(known.left, known.return_to) for known in self._known]

    def done(self) -> None:
        """Set the counts after the swap, which autograd has not seen."""
        after = tuple(map(SwapVersion.after, self._known, self._before))
        for known, left, return_to in zip(self._known, after, self._before, strict=True):
            known.left, known.return_to = left, return_to
        _set_counts(self._tensors, after)

    def undone(self) -> None:
        """Set the counts before the swap."""
        for known, (left, return_to) in zip(self._known, self._noted, strict=True):
            known.left, known.return_to = left, return_to
        _set_counts(self._tensors, self._before)


def _set_counts(tensors: tuple[Tensor, ...], counts: tuple[int, ...]) -> None:
    torch._C._autograd._unsafe_set_version_counter(tensors, counts)
