"""A delta for the same model in another dtype: the tuned weights cast, as casting the tuned model would."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from rst.delta.parameter_delta import ParameterDelta
from rst.delta.sparse_delta import SparseDelta
from rst.operations.convert import convert


def cast(delta: SparseDelta, base: nn.Module, dtypes: Mapping[str, torch.dtype]) -> SparseDelta:
    """Cast the tuned values of a delta. Residuals would be rounded twice, so the result stores the values themselves.

    Args:
        delta: with any operation.
        base: the module that holds the weights it was made from, in their old dtype.
        dtypes: the new dtype of each of its tensors; those not named stay as they are.

    Returns:
        A delta with op "replace", without digests of a base: the cast base is not the one it was made from.

    Raises:
        RSTError: as `rst.convert`; the base is not the delta's.
    """
    if all(dtypes.get(name, change.dtype) == change.dtype for name, change in delta.parameters.items()):
        return delta
    absolute = convert(delta, op="replace", base=base)
    return replace(
        absolute,
        parameters={name: _cast(change, dtypes.get(name, change.dtype)) for name, change in absolute.items()},
        dense={name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in delta.dense.items()},
    )


def _cast(change: ParameterDelta, dtype: torch.dtype) -> ParameterDelta:
    values = change.values.to(dtype)
    return ParameterDelta(
        change.indices, values, change.shape, dtype, change.indices[:0], values[:0], base=None, op="replace"
    )
