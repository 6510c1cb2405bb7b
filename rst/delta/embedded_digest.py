"""The digest inside a delta file: BLAKE3 of the whole file, with its own digits read as zeros.

It takes one pass over the bytes on the disk, including the header. `b3sum` computes the same digest once the digits are
replaced by zeros.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from rst.files.safetensors_writer import TensorSpec, write_safetensors
from rst.numerics.fingerprint import TEXT_DIGITS, hasher

BLANK = "0" * TEXT_DIGITS
_FIELD = '"digest":"'  # in a name or a value, the quotes would be escaped


def write_sealed(
    path: Path, specs: Mapping[str, TensorSpec], tensors: Iterable[Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, with a digest computed while writing. Arguments and errors are the writer's."""
    found = hasher()
    write_safetensors(path, specs, tensors, {**metadata, "digest": BLANK}, also=found.update)
    digits = found.hexdigest()[:TEXT_DIGITS]
    with path.open("r+b") as file:
        header = file.read(_header_end(file.read(8)) - 8)
        file.seek(8 + header.index(f"{_FIELD}{BLANK}".encode()) + len(_FIELD))
        file.write(digits.encode())


def digest_fits(contents: memoryview, digits: str) -> bool:
    """Return whether the bytes of such a file have the digest `digits`, which its metadata gives."""
    end = _header_end(contents[:8])
    header = contents[:end].tobytes().replace(f"{_FIELD}{digits}".encode(), f"{_FIELD}{BLANK}".encode(), 1)
    found = hasher(len(contents)).update(header).update(contents[end:])
    return found.hexdigest()[:TEXT_DIGITS] == digits


def _header_end(first_bytes: bytes | memoryview) -> int:
    return 8 + int.from_bytes(first_bytes, "little")
