"""What to say of a delta for one dtype that meets weights of another, on every route alike."""

import torch
from torch import Tensor

from rst.delta.parameter_delta import ParameterDelta
from rst.numerics.exactness import RESIDUAL_DTYPES


def cast_advice(wanted: ParameterDelta | Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """How to cast the delta to the weights' dtype, to end a message with; empty where no cast helps.

    Args:
        wanted: what the delta has for one parameter.
        shape: that of the weights it meets.
        dtype: theirs.
    """
    castable = tuple(wanted.shape) == shape and wanted.dtype != dtype and {wanted.dtype, dtype} <= {*RESIDUAL_DTYPES}
    return f"; delta.to(dtype={dtype}), or --dtype, casts it, but not bit for bit" if castable else ""
