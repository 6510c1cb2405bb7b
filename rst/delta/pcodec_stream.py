"""Lossless compression of one array of numbers with pcodec: a stream of bytes, decoded within limits.

A stream is the number of entries in 8 bytes, little-endian, followed by a standalone pcodec file.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from pcodec import ChunkConfig, ModeSpec, PagingSpec, standalone
from torch import Tensor

from rst.errors import DeltaFormatError
from rst.files.budget import Budget, BudgetError
from rst.numerics.exactness import bits

_COUNT_BYTES = 8
_AS_FLOATS = (torch.float32, torch.float64)
# pcodec models each chunk separately, so chunks end with parameters, whose statistics differ: over layers of 0.1 to 10
# % density that saves 0.2 bits per index. Below 8192 entries, the headers of the chunks outweigh the gain.
_CHUNK = (1 << 13, 1 << 18)
# A chunk of equal numbers takes some 12 bytes, however long it is. A reader cannot distinguish that from a bomb, so it
# rejects more entries than the file's bytes explain (`rst.files.budget`); such regular files are written in short
# chunks.
_REGULAR_CHUNK = (1 << 6, 1 << 7)
_SAMPLE = 1 << 14


def compress(array: Tensor, lengths: Sequence[int], regular: bool = False) -> Tensor:
    """Compress numbers, bit for bit.

    Args:
        array: shape (n,), n > 0, of any non-complex dtype, on the CPU.
        lengths: number of entries of each group (one parameter each); they sum to n.
        regular: write short chunks, with at most 11 entries per byte.

    Returns:
        The stream, uint8.
    """
    numbers = _as_numpy(array)
    chunks = _chunks(lengths, *(_REGULAR_CHUNK if regular else _CHUNK))
    stream = _compress(numbers, _best_mode(numbers), chunks)
    return torch.frombuffer(bytearray(numbers.size.to_bytes(_COUNT_BYTES, "little") + stream), dtype=torch.uint8)


def decompress(source: str, name: str, stream: Tensor, dtype: torch.dtype, budget: Budget) -> Tensor:
    """Invert `compress` for an array of `dtype`; its entries are charged to the budget before memory is allocated.

    Raises:
        DeltaFormatError: the bytes are not such a stream. The error names the file `source` and, as its parameter, the
            stream `name`.
    """
    refuse = partial(DeltaFormatError, file=source, parameter=name)
    if stream.ndim != 1 or stream.dtype != torch.uint8 or stream.numel() <= _COUNT_BYTES:
        raise refuse(f"{stream.dtype} {tuple(stream.shape)} is no compressed stream")
    raw = stream.numpy().tobytes()
    count, body = int.from_bytes(raw[:_COUNT_BYTES], "little"), raw[_COUNT_BYTES:]
    try:
        budget.take("entries", count)
        numbers = np.empty(count, f"{'f' if dtype in _AS_FLOATS else 'i'}{dtype.itemsize}")
        progress = standalone.simple_decompress_into(body, numbers)
    except BudgetError as error:
        raise refuse(str(error)) from error
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise refuse(f"not a pcodec stream of {dtype} ({error})") from error
    if progress.n_processed != count or not progress.finished:
        raise refuse(f"{progress.n_processed} entries or more, the stream announces {count}")
    if dtype == torch.bool and (numbers.view(np.uint8) > 1).any():
        raise refuse("a bool is 0 or 1")  # torch relies on it
    return torch.from_numpy(numbers).view(dtype)


def _as_numpy(array: Tensor) -> np.ndarray[Any, Any]:
    """Return floats of 32 and 64 bits unchanged, for pcodec's float modes; others as bits, which compress as well."""
    return (array if array.dtype in _AS_FLOATS else bits(array)).contiguous().numpy()


def _best_mode(numbers: np.ndarray[Any, Any]) -> Any:
    """Choose how pcodec splits floats, by trying on a sample.

    Residuals are multiples of w0's unit in the last place: their low mantissa bits are mostly zero, and
    `float_quant(k)` splits off k of them. The k that pcodec guesses costs 0.6 bits more (tau = 1e-6, w0 ~ N(0, 0.02)).
    """
    modes = [ModeSpec.auto()]
    if numbers.dtype.kind == "f":
        modes += [ModeSpec.try_float_quant(k) for k in range(1, np.finfo(numbers.dtype).nmant)]
    sample = np.ascontiguousarray(numbers[:: -(-numbers.size // _SAMPLE)])
    return min(modes, key=lambda mode: len(_compress(sample, mode, [sample.size])))


def _compress(numbers: np.ndarray[Any, Any], mode: Any, chunks: Sequence[int]) -> bytes:
    paging = PagingSpec.exact_page_sizes(list(chunks))
    config = ChunkConfig(mode_spec=mode, paging_spec=paging, enable_8_bit=True)
    return bytes(standalone.simple_compress(numbers, config))


def _chunks(lengths: Sequence[int], least: int, most: int) -> list[int]:
    """Return the sizes of chunks: whole parameters up to at least `least` entries, then at most `most` at a time."""
    return [size for group in _groups(lengths, least) for size in _split(group, most)]


def _groups(lengths: Sequence[int], least: int) -> Iterator[int]:
    waiting = 0
    for length in lengths:
        waiting += length
        if waiting >= least:
            yield waiting
            waiting = 0
    if waiting:
        yield waiting


def _split(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]
