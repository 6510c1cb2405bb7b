"""The encoding "coo": plain arrays for each parameter, which anyone can read with safetensors and torch.

A parameter `p` has `p.indices` (flat row-major positions) and `p.values`. If these would be larger, it has `p.full`
instead: the values in the parameter's own shape, with a mark (a residual of -0.0, a step of 0) where nothing changed.
Where a residual misses the tuned value, `p.exact_indices` and `p.exact_values` hold that value.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rst.delta.parameter_delta import ParameterDelta, index_dtype
from rst.delta.parameter_header import ParameterHeader
from rst.errors import DeltaFormatError
from rst.files.safetensors_reader import StoredArrays
from rst.numerics.exactness import bits


def to_arrays(parameters: Mapping[str, ParameterDelta]) -> dict[str, Tensor]:
    """Lay out valid parameters as named arrays."""
    return {f"{name}.{part}": array for name, change in parameters.items() for part, array in _parts(change).items()}


def from_arrays(source: str, headers: Mapping[str, ParameterHeader], arrays: StoredArrays) -> dict[str, ParameterDelta]:
    """Invert `to_arrays`, and take what belongs to `headers` out of `arrays`. The result must still be validated.

    Raises:
        DeltaFormatError: an array `p.full` has another shape or dtype than the parameter.
    """
    read = _Arrays(headers, arrays)
    return {name: _read(source, name, header, read) for name, header in headers.items()}


class _Arrays:
    """The arrays of a file by name. Those of one kind are views of one tensor, in the order of the parameters."""

    def __init__(self, headers: Mapping[str, ParameterHeader], arrays: StoredArrays) -> None:
        self._arrays = arrays
        self._found: dict[str, Tensor] = {}
        self._nothing: dict[torch.dtype, Tensor] = {}
        kinds: dict[tuple[torch.dtype, torch.dtype, torch.dtype], list[str]] = {}
        for name, header in headers.items():
            kinds.setdefault((index_dtype(header.numel), header.stored, header.dtype), []).append(name)
        for (positions, stored, dtype), names in kinds.items():
            for part, kind in (
                ("indices", positions),
                ("values", stored),
                ("exact_indices", positions),
                ("exact_values", dtype),
            ):
                self._join([f"{name}.{part}" for name in names], kind)

    def _join(self, names: Sequence[str], dtype: torch.dtype) -> None:
        counts = {name: count for name in names if (count := self._arrays.count(name, dtype)) is not None}
        if counts:
            joined = self._arrays.take_joined(list(counts), dtype)
            self._found.update(zip(counts, torch.split(joined, list(counts.values())), strict=True))

    def take(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return an array, of any dtype and shape; an empty one of `dtype` if the file has none."""
        found = self._found.get(name)
        if found is None:
            found = self._arrays.take(name)
        if found is not None:
            return found
        if dtype not in self._nothing:
            self._nothing[dtype] = torch.empty(0, dtype=dtype)
        return self._nothing[dtype]

    def take_full(self, name: str) -> Tensor | None:
        """Return the values in the parameter's own shape, if they are stored in this way."""
        return self._arrays.take(f"{name}.full")


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
    if change.op == "replace":  # every value may be a change, so there is no mark
        return False
    width = change.values.element_size()
    return change.nnz * (change.indices.element_size() + width) > change.numel * width


def _looks_unchanged(change: ParameterDelta) -> Tensor:
    """Return which entries equal the mark: none after an exact export, but some after arithmetic."""
    alike = bits(change.values) == bits(_mark(change.op, change.values.dtype))
    alike[torch.searchsorted(change.indices, change.exact_indices)] = False
    return alike


def _mark(op: str, dtype: torch.dtype) -> Tensor:
    """Return the value that leaves every weight unchanged: x + -0.0 is x, even for x = -0.0."""
    return torch.tensor([-0.0 if op == "add" else 0], dtype=dtype)


def _read(source: str, name: str, header: ParameterHeader, arrays: _Arrays) -> ParameterDelta:
    exact_indices = arrays.take(f"{name}.exact_indices", torch.int32)
    exact_values = arrays.take(f"{name}.exact_values", header.dtype)
    full = arrays.take_full(name)
    if full is None:
        indices = arrays.take(f"{name}.indices", torch.int32)
        values = arrays.take(f"{name}.values", header.stored)
    elif header.op == "replace" or (tuple(full.shape), full.dtype) != (header.shape, header.stored):
        found = f"{full.dtype} {tuple(full.shape)}"
        reason = f'full is {found}, not {header.stored} {header.shape} with op "add" or "step"'
        raise DeltaFormatError(reason, file=source, parameter=name)
    else:
        flat = full.reshape(-1)
        changed = bits(flat) != bits(_mark(header.op, header.stored))
        changed[exact_indices.long()] = True
        positions = changed.nonzero().squeeze(1)
        indices, values = positions.to(index_dtype(flat.numel())), flat[positions]
    return ParameterDelta(
        indices, values, header.shape, header.dtype, exact_indices, exact_values, header.base, header.op
    )
