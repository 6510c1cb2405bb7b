"""The advice for a delta of one dtype that meets weights of another. It is the same on every route."""

import torch
from torch import Tensor

from rst.delta.parameter_delta import ParameterDelta
from rst.numerics.exactness import RESIDUAL_DTYPES


def cast_advice(wanted: ParameterDelta | Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """Return how to cast the delta to the weights' dtype, as the end of a message; empty if no cast helps.

    Args:
        wanted: the delta's change of one parameter.
        shape: the shape of the weights.
        dtype: the dtype of the weights.
    """
    castable = tuple(wanted.shape) == shape and wanted.dtype != dtype and {wanted.dtype, dtype} <= {*RESIDUAL_DTYPES}
    return f"; delta.to(dtype={dtype}), or --dtype, casts it, but not bit for bit" if castable else ""
