"""Availability of Triton's kernels on a device: on CUDA and ROCm, if Triton and its requirements are installed."""

import warnings
from functools import cache

import torch


@cache
def run_on(device: torch.device) -> bool:
    """Return whether kernels run there, by running one; the result is cached. Warns if Triton fails."""
    if device.type != "cuda" or not torch.utils._triton.has_triton():
        return False
    from rst.numerics.difference_triton import count_changed_of_all  # pragma: no cover  (CUDA)

    try:  # pragma: no cover  (CUDA)
        number = torch.zeros(1, device=device)
        return count_changed_of_all([(number, number + 1)]) == [1]
    except Exception as error:  # pragma: no cover  (CUDA: no C compiler, a read-only cache, an old GPU)
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"Triton does not run on {device} ({type(error).__name__}: {reason})", stacklevel=2)
        return False
