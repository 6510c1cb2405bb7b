"""Eq. 17 in place: every weight that moved by no more than tau is reset to its pretrained value, bit for bit.

Three functions give the same bits: `project_eager` works everywhere, `project_compiled` reads each weight and its
origin once and writes once, and `TritonProjection` does so for all weights of a dtype in one launch on a GPU.
"""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from rst.config import BaseStorage
from rst.numerics import kernels
from rst.training.projection_compiled import compiles, project_compiled
from rst.training.projection_eager import Pair, project_eager
from rst.training.streamed_projection import StreamedProjection

CountKept = Callable[[], int]
"""Returns how many weights a projection left different from their origins, until the next one; waits for the device."""

Project = Callable[[Iterable[Pair], float | Tensor], CountKept | None]
"""Resets weights; tau as a tensor, of shape (), is not rounded, and stays on an accelerator.

Returns a function that counts what is kept, if that is known without reading all weights again.
"""

# Compiling takes seconds once, which does not pay off for fewer weights than this.
_WORTH_COMPILING = 1 << 24


def choose_projection(tuned: Sequence[Tensor], storage: BaseStorage | None = None) -> Project:
    """Choose Triton's kernel where it runs; otherwise compile if there are enough weights on one device.

    Args:
        tuned: the weights.
        storage: storage of their origins, as `RSTConfig.base_storage`. If they are in CPU memory and kernels run, the
            projection takes them there, otherwise on the devices of the weights.
    """
    if any(kernels.run_on(weight.device) for weight in tuned):
        from rst.training.projection_triton import TritonProjection

        return StreamedProjection(TritonProjection()) if storage in ("cpu", "mmap") else TritonProjection()
    enough = sum(weight.numel() for weight in tuned) >= _WORTH_COMPILING
    one_device = len({weight.device for weight in tuned}) == 1
    compiled = enough and one_device and compiles(tuned[0].device, tuned[0].dtype)
    return project_compiled if compiled else project_eager
