"""The origin of a delta: base, settings, versions and digests, as recorded in the file."""

import json
from collections.abc import Mapping
from pathlib import Path

from rst.delta.sparse_delta import SparseDelta

_UNKNOWN = "unknown"


def provenance(path: Path, metadata: Mapping[str, str], delta: SparseDelta) -> list[tuple[str, str]]:
    """Return labels and texts in display order."""
    return [
        ("File", path.name),
        ("Base", delta.base.name or "unnamed"),
        ("Base revision", delta.base.revision or _UNKNOWN),
        ("Weights compared", f"{delta.base.weights:,}"),
        ("Fingerprint of the base's changed tensors (BLAKE3)", delta.fingerprint() or _UNKNOWN),
        ("Digest of the file (BLAKE3)", metadata.get("digest", _UNKNOWN)),
        ("Format", f"{metadata['format']}, version {metadata['format_version']}"),
        ("Encoding", metadata["encoding"]),
        ("Operation", metadata["op"]),
        ("Written by", f"rst {metadata['library_version']}"),
        ("Settings", json.dumps(dict(delta.config), sort_keys=True) if delta.config else "none recorded"),
        ("Tied names", ", ".join(f"{alias} = {owner}" for alias, owner in delta.tied.items()) or "none"),
    ]
