"""BLAKE3 digests of tensors, which identify a base model and detect altered files."""

import os
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from rst.numerics.exactness import as_bytes

if TYPE_CHECKING:
    from blake3 import blake3

# A tensor's digest detects accidents (the wrong checkpoint, a flipped bit), one tensor at a time: at 64 bits, a million
# wrong tensors pass with a chance of one in 2^44. An attacker who can choose the base needs no collision.
_TENSOR_DIGITS = 16
_PROCESS = os.getpid()
_PIECE = 1 << 24  # bytes
_WORTH_THREADS = 1 << 20  # bytes; on a busy machine waiting for threads takes longer than hashing fewer
TEXT_DIGITS = 32


def hasher(size: int | None = None) -> "blake3":
    """Return a BLAKE3 hasher on all cores; on one core for few bytes, or in a forked process, which lacks the threads.

    Args:
        size: how many bytes there are to hash, where that is known.
    """
    from blake3 import blake3

    alone = os.getpid() != _PROCESS or (size is not None and size < _WORTH_THREADS)
    return blake3(max_threads=1 if alone else blake3.AUTO)


def digest(tensor: Tensor) -> str:
    """Digest the elements of a tensor in row-major order, 16 hexadecimal digits; shape and dtype are not included."""
    return hasher().update(as_bytes(tensor.cpu()).numpy().data).hexdigest()[:_TENSOR_DIGITS]


def digests(tensor: Tensor, lengths: Sequence[int]) -> list[str]:
    """Digest consecutive parts of a tensor with these lengths in elements, each as `digest` would."""
    from blake3 import blake3

    data, width = as_bytes(tensor.cpu()).numpy().data, tensor.element_size()
    edges = pairwise([0, *accumulate([length * width for length in lengths])])
    return [
        (blake3(data[a:b]) if b - a < _WORTH_THREADS else hasher().update(data[a:b])).hexdigest()[:_TENSOR_DIGITS]
        for a, b in edges  # one hasher less for each of many short parts
    ]


def digest_file(path: Path) -> str:
    """Digest a file's bytes, 64 hexadecimal digits."""
    found = hasher()
    # Not mapped: pages of a whole shard would count as this process' memory, and truncating the file would kill it.
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def digest_text(text: str) -> str:
    """Digest a string, 32 hexadecimal digits."""
    from blake3 import blake3

    return blake3(text.encode()).hexdigest()[:TEXT_DIGITS]
