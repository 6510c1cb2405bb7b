"""The encoding "packed": the arrays of all parameters, concatenated and compressed into one stream per kind of array.

- `records`: the names, shapes, dtypes and digests of the parameters, as JSON compressed with zlib.
- `gaps`: the number of unchanged weights before each changed one, in all parameters concatenated in the order of the
  records.
- `values.<dtype>`: the values of all parameters of one dtype.
- `exact_gaps`, `exact_values.<dtype>`: the same for the tuned values where a residual misses; these gaps count the
  changed weights only.

A stream without entries is left out. This form serves every density: a parameter that changed everywhere has gaps of 0,
which take 0.01 bits each.
"""

import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.delta.parameter_delta import ParameterDelta, index_dtype
from rst.delta.parameter_header import ParameterHeader
from rst.delta.pcodec_stream import compress, decompress
from rst.errors import DeltaFormatError
from rst.files.budget import Budget
from rst.files.safetensors_reader import StoredArrays
from rst.numerics.dtypes import NAME_OF_DTYPE
from rst.numerics.exactness import bits, step_dtype

Positions = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


def to_arrays(parameters: Mapping[str, ParameterDelta]) -> dict[str, Tensor]:
    """Compress valid parameters into named streams, but no further than a reader is willing to unpack."""
    parts = _parts(parameters)
    streams = {name: compress(array, lengths) for name, (array, lengths) in parts.items()}
    entries = sum(array.numel() for array, _ in parts.values())
    if entries > Budget(sum(stream.numel() for stream in streams.values())).entries:
        streams = {name: compress(array, lengths, regular=True) for name, (array, lengths) in parts.items()}
    return streams


def _parts(parameters: Mapping[str, ParameterDelta]) -> dict[str, tuple[Tensor, list[int]]]:
    """Return each stream's entries, and how many belong to each parameter, by name. Empty streams are left out."""
    changes = parameters.values()
    slots = [torch.searchsorted(change.indices, change.exact_indices) for change in changes]
    parts = {
        "gaps": _join_positions([change.indices for change in changes], [change.numel for change in changes]),
        "exact_gaps": _join_positions(slots, [change.nnz for change in changes]),
    }
    for dtype in dict.fromkeys(change.dtype for change in changes):
        alike = [change for change in changes if change.dtype == dtype]
        parts[f"values.{NAME_OF_DTYPE[dtype]}"] = _join([change.values for change in alike])
        parts[f"exact_values.{NAME_OF_DTYPE[dtype]}"] = _join([change.overlay for change in alike])
    return {name: (array, lengths) for name, (array, lengths) in parts.items() if array.numel()}


def from_arrays(
    source: str, headers: Mapping[str, ParameterHeader], arrays: StoredArrays, budget: Budget
) -> dict[str, ParameterDelta]:
    """Invert `to_arrays`, and take its streams out of `arrays`. The result must still be validated.

    Raises:
        DeltaFormatError: a stream is damaged, announces too many entries, or does not fit the headers.
    """
    streams = _Streams(source, arrays, budget)
    sizes = [header.numel for header in headers.values()]
    indices, counts = streams.positions("gaps", sizes)
    slots, exact_counts = streams.positions("exact_gaps", counts)
    local = indices - np.repeat(np.array([0, *accumulate(sizes)][:-1], dtype=indices.dtype), counts)
    values = _read_values(streams, "values", headers, counts)
    exact_values = _read_values(streams, "exact_values", headers, exact_counts)
    return {
        name: ParameterDelta(
            positions, values[name], header.shape, header.dtype, exact, exact_values[name], header.base, header.op
        )
        for (name, header), positions, exact in zip(
            headers.items(), _split(local, counts, sizes), _split(local[slots], exact_counts, sizes), strict=True
        )
    }


def pack_headers(text: str, count: int) -> Tensor:
    """Compress the JSON of `rst.delta.parameter_header`, but no further than a reader is willing to unpack.

    Names and shapes that hardly differ pack 30 to 1. What would pack better is stored uncompressed, because a megabyte
    of zlib can expand to a gigabyte of JSON, and that to thirty gigabytes of objects.
    """
    plain = text.encode()
    packed = zlib.compress(plain, 9)
    allowed = Budget(len(packed))
    if len(plain) > allowed.text or count > allowed.records:
        packed = zlib.compress(plain, 0)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def unpack_headers(source: str, stream: Tensor, budget: Budget) -> str:
    """Invert `pack_headers`, within a budget. Raises `DeltaFormatError`."""
    inflater, most = zlib.decompressobj(), budget.text
    try:
        text = inflater.decompress(stream.numpy().tobytes(), most)
        if not inflater.eof:
            raise DeltaFormatError(f"records is truncated, or longer than {most} bytes", file=source)
        budget.take("records", max(text.count(b"{") - 1, text.count(b"["), text.count(b",") // 8))  # about one each
        return text.decode()
    except (zlib.error, ValueError) as error:
        raise DeltaFormatError(f"records cannot be read ({error})", file=source) from error


def _join_positions(parts: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Turn positions, sorted and unique within each part, into gaps over the concatenated parts."""
    starts = [0, *accumulate(sizes)]
    positions = [part.long() + start for part, start in zip(parts, starts, strict=False)]
    gaps = torch.diff(torch.cat([torch.tensor([-1]), *positions])) - 1
    return gaps.to(index_dtype(starts[-1])), [part.numel() for part in parts]


def _join(parts: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    array = torch.cat([bits(part.contiguous()) for part in parts]).view(parts[0].dtype)
    return array, [part.numel() for part in parts]


class _Streams:
    """The streams of one file, which are decoded on demand."""

    def __init__(self, source: str, arrays: StoredArrays, budget: Budget) -> None:
        self.source, self.arrays, self._budget = source, arrays, budget

    def array(self, name: str, dtype: torch.dtype) -> Tensor:
        stream = self.arrays.take(name)
        if stream is None:
            return torch.empty(0, dtype=dtype)
        return decompress(self.source, name, stream, dtype, self._budget)

    def positions(self, name: str, sizes: Sequence[int]) -> tuple[Positions, list[int]]:
        """Invert `_join_positions`: return the positions in the concatenated parts, and how many lie in each part."""
        starts = [0, *accumulate(sizes)]
        if name not in self.arrays:
            return np.empty(0, dtype=np.int64), [0] * len(sizes)
        gaps = self.array(name, index_dtype(starts[-1])).numpy()
        positions = np.cumsum(gaps + 1, dtype=gaps.dtype) - 1  # an overflow leaves an order that validation rejects
        if gaps.min() < 0 or not 0 <= positions[-1] < starts[-1]:
            raise DeltaFormatError(f"{name} lead outside the {starts[-1]} entries of the array", file=self.source)
        edges = np.searchsorted(positions, np.array(starts, dtype=positions.dtype))
        return positions, np.diff(edges).tolist()


def _split(positions: Positions, counts: Sequence[int], sizes: Sequence[int]) -> list[Tensor]:
    """Split positions into parts, each in the dtype for the positions of its parameter."""
    parts = torch.split(torch.from_numpy(positions), list(counts))
    return [part.to(index_dtype(size)) for part, size in zip(parts, sizes, strict=True)]


def _read_values(
    streams: _Streams, kind: str, headers: Mapping[str, ParameterHeader], counts: Sequence[int]
) -> dict[str, Tensor]:
    """Invert `_join`: return the values of each parameter."""
    lengths_of = dict(zip(headers, counts, strict=True))
    values: dict[str, Tensor] = {}
    for dtype in dict.fromkeys(header.dtype for header in headers.values()):
        alike = [name for name, header in headers.items() if header.dtype == dtype]
        stored = step_dtype(dtype) if kind == "values" and headers[alike[0]].op == "step" else dtype
        stream, lengths = f"{kind}.{NAME_OF_DTYPE[dtype]}", [lengths_of[name] for name in alike]
        array = streams.array(stream, stored)
        if array.numel() != sum(lengths):
            raise DeltaFormatError(f"{array.numel()} {stream} for {sum(lengths)} positions", file=streams.source)
        values |= dict(zip(alike, torch.split(array, lengths), strict=True))
    return values
