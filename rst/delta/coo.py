"""Encoding "coo": plain arrays for each parameter, which anyone with safetensors and torch can read.

For a parameter `p`: `p.indices` (flat row-major positions) and `p.values`, or where those would be larger `p.full`, the
values in the parameter's own shape with a mark (a residual of -0.0, a step of 0) where nothing changed. Where a
residual misses, `p.exact_indices` and `p.exact_values` have the tuned values.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rst.delta.parameter_delta import ParameterDelta, index_dtype
from rst.delta.parameter_header import ParameterHeader
from rst.errors import DeltaFormatError
from rst.numerics.exactness import bits, step_dtype


def to_arrays(parameters: Mapping[str, ParameterDelta]) -> dict[str, Tensor]:
    """Lay out valid parameters as named arrays."""
    return {f"{name}.{part}": array for name, change in parameters.items() for part, array in _parts(change).items()}


def from_arrays(
    source: str, headers: Mapping[str, ParameterHeader], arrays: dict[str, Tensor]
) -> dict[str, ParameterDelta]:
    """Invert `to_arrays`, taking what belongs to `headers` out of `arrays`; the result is still to be validated.

    Raises:
        DeltaFormatError: an array in the full shape has another shape or dtype.
    """
    return {name: _read(source, name, header, arrays) for name, header in headers.items()}


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


def _read(source: str, name: str, header: ParameterHeader, arrays: dict[str, Tensor]) -> ParameterDelta:
    dtype = step_dtype(header.dtype) if header.op == "step" else header.dtype
    exact_indices = _take(arrays, f"{name}.exact_indices", torch.int32)
    exact_values = _take(arrays, f"{name}.exact_values", header.dtype)
    full = arrays.pop(f"{name}.full", None)
    if full is None:
        indices = _take(arrays, f"{name}.indices", torch.int32)
        values = _take(arrays, f"{name}.values", dtype)
    elif header.op == "replace" or (tuple(full.shape), full.dtype) != (header.shape, dtype):
        found = f"{full.dtype} {tuple(full.shape)}"
        reason = f'full is {found}, not {dtype} {header.shape} with op "add" or "step"'
        raise DeltaFormatError(reason, file=source, parameter=name)
    else:
        flat = full.reshape(-1)
        changed = bits(flat) != bits(_mark(header.op, dtype))
        changed[exact_indices.long()] = True
        positions = changed.nonzero().squeeze(1)
        indices, values = positions.to(index_dtype(flat.numel())), flat[positions]
    return ParameterDelta(
        indices, values, header.shape, header.dtype, exact_indices, exact_values, header.base, header.op
    )


def _take(arrays: dict[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    array = arrays.pop(name, None)
    return torch.empty(0, dtype=dtype) if array is None else array
