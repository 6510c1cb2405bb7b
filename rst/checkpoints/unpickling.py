"""Reading untrusted pickled checkpoints: nothing in them runs, and no tensor is larger than its file."""

import re
import tarfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from rst.checkpoints.allowed_classes import harmless
from rst.checkpoints.pickle_scan import check_pickle
from rst.errors import CheckpointError
from rst.files.budget import Budget, BudgetError
from rst.numerics.exactness import plain_parts

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")
_RUNS_CODE = re.compile(r"(?:os|posix|nt|pty|runpy|subprocess)\.|builtins\.(?:eval|exec|compile|__import__)$")
_REFUSED_CLASS = re.compile(r"(?:GLOBAL|Unsupported class) ([\w.]{1,99})(?: was not an allowed global)?")
_REASON = re.compile(r"WeightsUnpickler error:\s*([^\n]+)")
_LAYOUTS = {
    torch.strided,
    torch.sparse_coo,
    torch.sparse_csr,
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
}
_ZIP = b"PK\x03\x04"
_LEGACY_PICKLES = 5  # two numbers, the system's sizes, the content, and the keys of its storages


def unpickle(path: Path) -> Any:
    """Read a pickle with `weights_only=True`, mapped if its format allows. Raises `CheckpointError`."""
    try:
        return _load(path)
    except Exception as error:  # a damaged pickle can make the unpickler raise any class
        forget_failed_load()
        raise CheckpointError(_reason(error), file=path) from error


def _reason(error: Exception) -> str:
    """Return torch's message in one line without terminal codes; for an untrusted class, its name and how to allow it.

    torch's own first line announces options that follow, or advises to trust the file, and names nothing.
    """
    text = _TERMINAL_CODES.sub("", str(error)).strip()
    if found := _REFUSED_CLASS.search(text):
        return _way_out(found[1].removeprefix("."))
    if found := _REASON.search(text):
        return (
            f"not a readable checkpoint ({found[1].strip()[:200]}); torch.save(model.state_dict(), file) writes one "
            "that torch.load(weights_only=True) reads"
        )
    first = text.partition("\n")[0][:200]
    return f"not a readable checkpoint ({first if ' ' in first else ' '.join([type(error).__name__, first]).strip()})"


def _way_out(name: str) -> str:
    if name.startswith("torch.nn."):
        return (
            f"not read: it holds a whole module ({name}), which torch.load(weights_only=True) does not trust. Save "
            "the weights alone: torch.save(model.state_dict(), file)"
        )
    if _RUNS_CODE.match(name):
        return (
            f"not read: it would call {name}, which runs whatever the file says. Do not trust it: no checkpoint of "
            "weights needs that"
        )
    option = f"give --allow-class {name} to rst, or " if harmless(name) else ""
    return (
        f"not read: it holds {name}, a class that torch.load(weights_only=True) does not trust. If you do, {option}"
        f"call torch.serialization.add_safe_globals([{name}]) first, or save the weights alone: "
        'torch.save(checkpoint["model"], file)'
    )


def forget_failed_load() -> None:
    """Load an empty checkpoint: torch checks a failed load's sparse tensors at the next load, and would reject that."""
    nothing = BytesIO()
    torch.save(None, nothing)
    nothing.seek(0)
    with suppress(Exception):
        torch.load(nothing, weights_only=True)


def check_tensors(source: str, tensors: Any, file_bytes: int) -> None:
    """Raise `CheckpointError` unless the memory of a mapping's values, as far as they are tensors, is in the file.

    A few bytes may be spread over any shape by a stride of 0: to read such a tensor takes the memory of its shape. The
    parts of a sparse or quantised tensor are looked at; a nested one's may point anywhere.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            continue
        place = {"file": source, "parameter": str(name)[:99]}
        if tensor.is_nested or tensor.layout not in _LAYOUTS:
            kind = "a nested tensor" if tensor.is_nested else f"of layout {tensor.layout}"
            raise CheckpointError(
                f"{kind}: such tensors are not read from files, which may be malicious; save the weights without "
                f"it, or pass the module instead",
                **place,
            )
        strided = tensor.layout == torch.strided
        nbytes = tensor.nbytes if strided else sum(part.nbytes for part in plain_parts(tensor))
        if nbytes > file_bytes:
            raise CheckpointError(f"a tensor of {nbytes} bytes in a file of {file_bytes}", **place)


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP
    # The format of torch before 0.1.10. Until torch 2.6 its reader ran what is in it, weights_only or not
    # (CVE-2025-32434).
    if not zipped and _is_tar(path):
        raise ValueError("a tar file of torch before 0.1.10, which cannot be read safely")
    _check_cost(path, zipped)
    # The format before torch 1.6 cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _check_cost(path: Path, zipped: bool) -> None:
    """Raise `ValueError` where unpickling would take more than the file explains."""
    budget = Budget(path.stat().st_size)
    if not zipped:
        with path.open("rb") as file:
            for _ in range(_LEGACY_PICKLES):
                check_pickle(file, budget)
        return
    with ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != ZIP_STORED:
                raise BudgetError(f"its member {member.filename} is compressed, which torch.save never does")
    reader = torch._C.PyTorchFileReader(str(path))  # what torch itself will find in it
    check_pickle(BytesIO(reader.get_record("data.pkl")), budget)


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False
