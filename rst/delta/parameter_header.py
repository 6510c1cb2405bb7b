"""The JSON record of each parameter in a delta file, besides the parameter's arrays."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rst.delta.parameter_delta import BaseDigests, Op, ParameterDelta, stored_op
from rst.errors import DeltaFormatError
from rst.files.strict_json import parse_json, typed
from rst.numerics.dtypes import DTYPE_OF_NAME, NAME_OF_DTYPE
from rst.numerics.exactness import step_dtype

_MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class ParameterHeader:
    """The shape and dtype of one parameter, the digests of its base, and the meaning of its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    base: BaseDigests | None
    op: Op

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the values in the file."""
        return step_dtype(self.dtype) if self.op == "step" else self.dtype

    @property
    def numel(self) -> int:
        """The number of weights. In an untrusted file, it may exceed what torch can count."""
        return math.prod(self.shape)


def write_headers(parameters: Mapping[str, ParameterDelta]) -> str:
    """Describe the parameters in JSON, in their order (`rst.delta.packed` needs it). Raises `DeltaFormatError`."""
    return json.dumps({name: _describe(name, change) for name, change in parameters.items()}, separators=(",", ":"))


def _describe(name: str, change: ParameterDelta) -> dict[str, Any]:
    if change.dtype not in NAME_OF_DTYPE:
        raise DeltaFormatError(f"safetensors has no {change.dtype}", parameter=name)
    record: dict[str, Any] = {"shape": list(change.shape), "dtype": NAME_OF_DTYPE[change.dtype]}
    if change.base is not None:
        record |= {"base": change.base.whole, "touched": change.base.touched}
    return record


def read_headers(text: str, op: Op) -> dict[str, ParameterHeader]:
    """Invert `write_headers` for a file of operation `op`. Raises `KeyError`, `TypeError` or `ValueError`."""
    return {name: _parse(record, op) for name, record in parse_json(text).items()}


def _parse(record: Mapping[str, Any], op: Op) -> ParameterHeader:
    shape, dtype = typed(record, "shape", list), DTYPE_OF_NAME[record["dtype"]]
    if len(shape) > _MOST_DIMENSIONS or not all(type(size) is int and 0 <= size < 1 << 63 for size in shape):
        raise ValueError(f"{str(shape)[:99]} is not a shape")
    base = BaseDigests(typed(record, "base", str), typed(record, "touched", str)) if "base" in record else None
    return ParameterHeader(tuple(shape), dtype, base, stored_op(op, dtype))
