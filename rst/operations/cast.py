"""Casting a delta for the same model in another dtype, with the result of casting the tuned model."""

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
        delta: the delta, with any operation.
        base: the module that holds the weights it was made from, in their old dtype.
        dtypes: the new dtype of each of its tensors, under any of their names; others keep their dtype.

    Returns:
        A delta with op "replace", without digests of a base: the cast base is not the one it was made from.

    Raises:
        RSTError: as `rst.convert`; or the base is not the delta's.
    """

    def wanted(name: str, dtype: torch.dtype) -> torch.dtype:
        return next((dtypes[alias] for alias in delta.names_of(name) if alias in dtypes), dtype)

    dense = {name: tensor.to(wanted(name, tensor.dtype)) for name, tensor in delta.dense.items()}
    if all(wanted(name, change.dtype) == change.dtype for name, change in delta.items()):
        unchanged = all(dense[name].dtype == tensor.dtype for name, tensor in delta.dense.items())
        return delta if unchanged else replace(delta, dense=dense)
    absolute = convert(delta, op="replace", base=base)
    cast_changes = {name: _cast(change, wanted(name, change.dtype)) for name, change in absolute.items()}
    return replace(absolute, parameters=cast_changes, dense=dense)


def _cast(change: ParameterDelta, dtype: torch.dtype) -> ParameterDelta:
    values = change.values.to(dtype)
    return ParameterDelta(
        change.indices, values, change.shape, dtype, change.indices[:0], values[:0], base=None, op="replace"
    )
