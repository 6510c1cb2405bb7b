"""A folder of versioned checkpoints, full or delta, for engines that reload weights from disk.

    versions/0000000012/version.json        kind, base version, every file's size and BLAKE3 checksum
    versions/0000000012/model.safetensors   all weights, or
    versions/0000000012/delta.safetensors   absolute values, plain arrays `<name>.indices` and `<name>.values`

A version appears by the rename of its folder, whole or not at all.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from rst.delta.header import to_json
from rst.delta.sparse_delta import SparseDelta
from rst.errors import CheckpointError, ConfigError, ParameterMismatchError
from rst.files.atomic import sync_to_disk
from rst.files.safetensors_writer import specs_of, write_safetensors
from rst.files.strict_json import parse_json, typed
from rst.files.temporaries import temporary_beside
from rst.numerics.fingerprint import digest_file
from rst.sync.errors import ChainDamageError, ChainGapError, ChainOrderError

Kind = Literal["full", "delta"]
_RECORD, _FILE_OF = "version.json", {"full": "model.safetensors", "delta": "delta.safetensors"}
_FORMAT, _FORMAT_VERSION = "rst-versions", 1


@dataclass(frozen=True)
class Version:
    """One version on disk.

    Attributes:
        number: its number.
        kind: "full" for all weights, "delta" for the changes since `base_version`.
        base_version: the version that a delta applies to; None for full weights.
        path: the file with the weights or changes.
        checksum: BLAKE3 of that file, as `b3sum` prints it.
    """

    number: int
    kind: Kind
    base_version: int | None
    path: Path
    checksum: str


def write_version(
    folder: str | os.PathLike[str],
    number: int,
    contents: SparseDelta | Mapping[str, Tensor],
    base_version: int | None = None,
) -> Version:
    """Add a version.

    Args:
        folder: where the versions are; created if missing.
        number: 0 or more, not there yet.
        contents: all weights by name, or a delta with absolute values (op "replace"), which needs no base to be read.
        base_version: what a delta applies to, a version that is there; None for full weights.

    Raises:
        ConfigError: a negative number, or a base version where none belongs, or none where one does.
        ChainOrderError: the version is there already, or its base is not.
        ParameterMismatchError: a delta with another operation, or with tensors stored whole.
        OSError: the folder cannot be written. In all these cases no version is added.
    """
    kind: Kind = "delta" if isinstance(contents, SparseDelta) else "full"
    if number < 0 or (kind == "delta") != (base_version is not None):
        raise ConfigError(
            f"version {number} with base_version={base_version}: a delta has a base version, weights none"
        )
    target = _folder_of(folder, number)
    if target.exists():
        raise ChainOrderError("this version is there already", file=target)
    if base_version is not None and not _folder_of(folder, base_version).is_dir():
        raise ChainOrderError(f"its base, version {base_version}, is not there", file=target)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with temporary_beside(target, "folder") as temporary:
        file = temporary / _FILE_OF[kind]
        _write_contents(file, contents)
        record = {"version": number, "kind": kind, "base_version": base_version, "file": file.name}
        record |= {"format": _FORMAT, "format_version": _FORMAT_VERSION}
        record |= {"bytes": file.stat().st_size, "blake3": digest_file(file)}
        (temporary / _RECORD).write_text(to_json(record) + "\n")
        temporary.chmod(0o755)
        for path in (file, temporary / _RECORD, temporary):
            sync_to_disk(path)
        temporary.rename(target)
        sync_to_disk(target.parent)
    return read_version(folder, number)


def read_version(folder: str | os.PathLike[str], number: int) -> Version:
    """Find a version and check its file.

    Raises:
        ChainGapError: it is not there.
        ChainDamageError: its record is malformed, or size or checksum do not fit.
    """
    source = _folder_of(folder, number)
    if not source.is_dir():
        raise ChainGapError("no such version", file=source)
    try:
        record = parse_json((source / _RECORD).read_bytes())
        path = source / _FILE_OF[record["kind"]]
        known = (record["format"], record["format_version"], record["version"]) == (_FORMAT, _FORMAT_VERSION, number)
        known &= path.resolve().parent == source.resolve()  # no link that leads elsewhere
        base_version = typed(record, "base_version", type(None) if record["kind"] == "full" else int)
        version = Version(number, record["kind"], base_version, path, typed(record, "blake3", str))
        size = path.stat().st_size
        if not known or size != record["bytes"] or digest_file(path) != version.checksum:
            raise ChainDamageError(f"{size} bytes, not the file that {_RECORD} describes", file=path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ChainDamageError(f"malformed version ({type(error).__name__}: {error})", file=source) from error
    return version


def _write_contents(path: Path, contents: SparseDelta | Mapping[str, Tensor]) -> None:
    if isinstance(contents, SparseDelta):
        if contents.dense or any(change.op != "replace" for change in contents.values()):
            raise ParameterMismatchError(
                'engines take absolute values alone; rst.convert to op "replace"', file=path.name
            )
        contents.save(path)
        return
    if not contents:
        raise CheckpointError("no weights to write", file=path.name)
    specs = specs_of(contents)
    write_safetensors(path, specs, (contents[name].detach().cpu() for name in specs))


def _folder_of(folder: str | os.PathLike[str], number: int) -> Path:
    return Path(folder) / f"{number:010d}"
