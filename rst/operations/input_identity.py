"""What a long job was started from, as one digest: the same inputs may be continued with, others may not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rst.delta.sparse_delta import SparseDelta
from rst.numerics.fingerprint import digest, digest_text
from rst.version import __version__


def job_digest(settings: Any, files: Sequence[Path]) -> str:
    """Digest settings in JSON, this library's version, and the files' names, sizes and times of last change.

    The contents of the files are not read: that would be half of the work that is to be saved.
    """
    stamps = []
    for path in files:
        found = path.stat()
        stamps.append([str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns])
    return digest_text(json.dumps([__version__, settings, stamps], sort_keys=True))


def delta_digest(delta: SparseDelta) -> str:
    """Digest all that `merge` takes from a delta: every array, and the names."""
    lines = [f"{sorted(delta.tied.items())}"]
    for name, change in delta.parameters.items():
        arrays = (change.indices, change.values, change.exact_indices, change.overlay)
        digests = " ".join(map(digest, arrays))
        lines.append(f"{name} {change.op} {change.dtype} {change.shape} {change.base} {digests}")
    for name, tensor in delta.dense.items():
        lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest(tensor)}")
    return digest_text("\n".join(lines))
