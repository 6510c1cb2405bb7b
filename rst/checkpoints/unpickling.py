"""Untrusted pickled checkpoints: nothing in them runs, and no tensor is more than its file holds."""

import re
import tarfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rst.errors import CheckpointError

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")
_REFUSED_CLASS = re.compile(r"GLOBAL ([\w.]{1,99}) was not an allowed global")
_ZIP = b"PK\x03\x04"


def unpickle(path: Path) -> Any:
    """Read a pickle with `weights_only=True`, mapped where its format allows. Raises `CheckpointError`."""
    try:
        return _load(path)
    except Exception as error:  # what a damaged pickle makes the unpickler raise has no common class
        forget_failed_load()
        raise CheckpointError(_reason(error), file=path) from error


def _reason(error: Exception) -> str:
    """What torch says, in one line without its terminal codes; of a class that it does not trust, which, and a way out.

    torch's own first line promises options that follow, and names nothing.
    """
    text = _TERMINAL_CODES.sub("", str(error)).strip()
    if found := _REFUSED_CLASS.search(text):
        module, _, name = found[1].rpartition(".")
        return (
            f"not read: it holds {module}.{name}, a class that torch.load(weights_only=True) does not trust. If you "
            f"do, call torch.serialization.add_safe_globals([{module}.{name}]) first, or save the weights alone: "
            'torch.save(checkpoint["model"], file)'
        )
    return f"not a readable checkpoint ({text.partition(chr(10))[0] or type(error).__name__})"


def forget_failed_load() -> None:
    """Load nothing: torch checks the sparse tensors of a load that failed at the next one, and would refuse that."""
    nothing = BytesIO()
    torch.save(None, nothing)
    nothing.seek(0)
    with suppress(Exception):
        torch.load(nothing, weights_only=True)


def check_tensors(source: str, tensors: Any, file_bytes: int) -> None:
    """Raise `CheckpointError` unless a mapping's values, as far as they are tensors, are plain ones with memory.

    A pickle may hold sparse, nested, quantised and meta tensors, and a few bytes spread over any shape by a stride of
    0: to read such a tensor takes the memory of its shape.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(
                "sparse, nested, quantised or without values, not plain weights",
                file=source,
                parameter=str(name)[:99],
            )
        if tensor.nbytes > file_bytes:
            raise CheckpointError(
                f"{tensor.nbytes} bytes in a file of {file_bytes}", file=source, parameter=str(name)[:99]
            )


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP
    # The format of torch before 0.1.10. Until torch 2.6 its reader ran what is in it, weights_only or not
    # (CVE-2025-32434).
    if not zipped and _is_tar(path):
        raise ValueError("a tar file of torch before 0.1.10, which cannot be read safely")
    # The format before torch 1.6 cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False
