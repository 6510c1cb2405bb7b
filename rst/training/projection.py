"""Eq. 17 in place: every weight that moved by no more than tau goes back to its pretrained value, bit for bit.

Two functions give the same bits: `project_eager` works everywhere, `project_compiled` reads each weight and its origin
once and writes once.
"""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from rst.training.projection_compiled import compiles, project_compiled
from rst.training.projection_eager import Pair, project_eager

Project = Callable[[Iterable[Pair], float | Tensor], None]
"""Puts weights back; tau as a tensor, of shape (), is not rounded, and stays on an accelerator."""

# Compiling costs seconds once; with fewer weights than this it would not earn them back.
_WORTH_COMPILING = 1 << 24


def choose_projection(tuned: Sequence[Tensor]) -> Project:
    """Compile where that works and there are enough weights, all on one device, to earn the wait of some seconds."""
    enough = sum(weight.numel() for weight in tuned) >= _WORTH_COMPILING
    one_device = len({weight.device for weight in tuned}) == 1
    compiled = enough and one_device and compiles(tuned[0].device, tuned[0].dtype)
    return project_compiled if compiled else project_eager
