"""The sources of `rst convert`: a delta, a PEFT adapter, or a released checkpoint of the paper."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from rst.errors import ConfigError

if TYPE_CHECKING:
    from rst.delta.sparse_delta import SparseDelta


class Source(str, Enum):
    """Kinds of sources, and their names in messages."""

    DELTA = "a delta"
    ADAPTER = "an adapter of PEFT"
    OFFICIAL = "a released checkpoint"


def source_kind(path: Path) -> Source:
    """Determine the kind by name: pickles are released checkpoints; a folder's kind follows from its configuration."""
    from rst.checkpoints.checkpoint import PICKLED_SUFFIXES
    from rst.delta.file import CONFIG_FILE

    if path.is_dir():
        return Source.DELTA if (path / CONFIG_FILE).is_file() else Source.ADAPTER
    return Source.OFFICIAL if path.suffix in PICKLED_SUFFIXES else Source.DELTA


def source_files(path: Path) -> list[Path]:
    """Return the files of a source, which no output may overwrite."""
    return [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]


def read_source(
    path: Path, base: Path | None, threshold: float | None, backbone_prefix: str | None, head_prefix: str | None
) -> "SparseDelta":
    """Read any source as a delta. Raises `ConfigError` for settings that the source does not use."""
    from rst.delta.sparse_delta import SparseDelta
    from rst.interop.official import from_official
    from rst.interop.peft_adapters import from_peft

    kind = source_kind(path)
    if threshold is not None and kind is not Source.ADAPTER:
        raise ConfigError(f"is {kind.value}; --threshold applies to PEFT adapters only", file=path)
    if (backbone_prefix is not None or head_prefix is not None) and kind is not Source.OFFICIAL:
        raise ConfigError(f"is {kind.value}; prefixes apply to released checkpoints only", file=path)
    if kind is Source.DELTA:
        return SparseDelta.load(path)
    if base is None:
        raise ConfigError(f"{kind.value} needs its base to become a delta; pass the base with --base", file=path)
    if kind is Source.ADAPTER:
        return from_peft(path, base, threshold=threshold)
    prefixes = {"backbone_prefix": backbone_prefix, "head_prefix": head_prefix}
    return from_official(path, base, **{name: prefix for name, prefix in prefixes.items() if prefix is not None})
