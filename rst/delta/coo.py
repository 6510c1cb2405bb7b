"""Encoding "coo": plain arrays for each parameter, which anyone with safetensors and torch can read.

For a parameter `p`: `p.indices` (flat row-major positions) and `p.values`, or where those would be larger `p.full`, the
values in the parameter's own shape with a mark (a residual of -0.0, a step of 0) where nothing changed. Where a
residual misses, `p.exact_indices` and `p.exact_values` have the tuned values.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rst.delta.header import Record
from rst.delta.parameter_delta import ParameterDelta, index_dtype
from rst.errors import DeltaFormatError
from rst.numerics.exactness import bits, step_dtype


def to_arrays(parameters: Mapping[str, ParameterDelta]) -> dict[str, Tensor]:
    """Lay out valid parameters as named arrays."""
    return {f"{name}.{part}": array for name, change in parameters.items() for part, array in _parts(change).items()}


def from_arrays(source: str, records: Mapping[str, Record], arrays: dict[str, Tensor]) -> dict[str, ParameterDelta]:
    """Invert `to_arrays`, taking what belongs to `records` out of `arrays`; the result is still to be validated.

    Raises:
        DeltaFormatError: an array in the full shape has another shape or dtype.
    """
    return {name: _read(f"{source}: {name}", record, name, arrays) for name, record in records.items()}


def _parts(change: ParameterDelta) -> dict[str, Tensor]:
    parts = {"indices": change.indices.contiguous(), "values": change.values.contiguous()}
    if _full_is_smaller(change) and not _looks_unchanged(change).any():
        full = torch.full((change.numel,), _mark(change.op, change.values.dtype).item(), dtype=change.values.dtype)
        full[change.indices.long()] = change.values
        parts = {"full": full.view(change.shape)}
    if change.exact_indices.numel():
        parts |= {"exact_indices": change.exact_indices.contiguous(), "exact_values": change.overlay.contiguous()}
    return parts


def _full_is_smaller(change: ParameterDelta) -> bool:
    if change.op == "replace":  # every value may be meant: there is no mark
        return False
    width = change.values.element_size()
    return change.nnz * (change.indices.element_size() + width) > change.numel * width


def _looks_unchanged(change: ParameterDelta) -> Tensor:
    """Which entries cannot be told from the mark: none of an exact export, some after arithmetic."""
    alike = bits(change.values) == bits(_mark(change.op, change.values.dtype))
    alike[torch.searchsorted(change.indices, change.exact_indices)] = False
    return alike


def _mark(op: str, dtype: torch.dtype) -> Tensor:
    """The value that leaves every weight as it is: x + -0.0 is x even for x = -0.0."""
    return torch.tensor([-0.0 if op == "add" else 0], dtype=dtype)


def _read(where: str, record: Record, name: str, arrays: dict[str, Tensor]) -> ParameterDelta:
    dtype = step_dtype(record.dtype) if record.op == "step" else record.dtype
    exact_indices = _take(arrays, f"{name}.exact_indices", torch.int32)
    exact_values = _take(arrays, f"{name}.exact_values", record.dtype)
    full = arrays.pop(f"{name}.full", None)
    if full is not None:
        indices, values = _sparsify(where, full, record, dtype, exact_indices)
    else:
        indices = _take(arrays, f"{name}.indices", torch.int32)
        values = _take(arrays, f"{name}.values", dtype)
    return ParameterDelta(
        indices, values, record.shape, record.dtype, exact_indices, exact_values, record.base, record.op
    )


def _take(arrays: dict[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    array = arrays.pop(name, None)
    return torch.empty(0, dtype=dtype) if array is None else array


def _sparsify(
    where: str, full: Tensor, record: Record, dtype: torch.dtype, exact_indices: Tensor
) -> tuple[Tensor, Tensor]:
    if record.op == "replace" or (tuple(full.shape), full.dtype) != (record.shape, dtype):
        found = f"{full.dtype} {tuple(full.shape)}"
        raise DeltaFormatError(f'{where}: full is {found}, not {dtype} {record.shape} with op "add" or "step"')
    flat = full.reshape(-1)
    changed = bits(flat) != bits(_mark(record.op, dtype))
    changed[exact_indices.long()] = True
    indices = changed.nonzero().squeeze(1)
    return indices.to(index_dtype(flat.numel())), flat[indices]
