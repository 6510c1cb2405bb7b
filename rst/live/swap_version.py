"""Autograd's count of writes, for weights that step aside and come back between a forward and its backward pass.

Autograd notes each tensor's count with the graph and goes backward only if it is still the same. A swap there and back
leaves the elements that the graph was made with, so the count goes back with them. What stands there meanwhile has a
count that ordinary writes do not come near: a graph made from those elements is refused once they are gone.
"""

from itertools import count

import torch
from torch import Tensor

_FIRST = 1 << 31  # the count has 32 bits and starts at 0
_APART = 1 << 12  # leaves room for writes to the elements that were swapped in
_fresh = count()


class SwapVersion:
    """The counts of a tensor with and without the elements that are swapped in."""

    def __init__(self) -> None:
        """Start before the first swap."""
        self._left: int | None = None
        self._return_to = 0

    def swapped(self, tensor: Tensor, before: int | None) -> None:
        """Set the count after a swap; `before` it was this one. None: torch counts no writes to this tensor."""
        if before is None:
            return
        untouched = before == self._left  # nobody wrote since the last swap, so the elements before that one are back
        after = self._return_to if untouched else _FIRST + next(_fresh) * _APART % _FIRST
        torch._C._autograd._unsafe_set_version_counter((tensor,), (after,))
        self._left, self._return_to = after, before


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written, as autograd counts; None for one that was made in inference mode."""
    return None if tensor.is_inference() else tensor._version
