"""Where results go: names derived from the inputs, and a refusal to overwrite what is not meant to be."""

import os
from collections.abc import Sequence
from pathlib import Path

from rst.errors import RSTError

_INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")


class OutputError(RSTError):
    """The output would overwrite something, or has no folder to be in."""


def delta_beside(tuned: Path) -> Path:
    """Name the delta of a tuned checkpoint: `model.ckpt` gives `model.delta.safetensors` in the same folder."""
    return _beside(tuned, ".delta.safetensors")


def merged_beside(base: Path) -> Path:
    """Name a merged checkpoint: `base.pt` gives `base.merged.pt`; folders and shards give one `.safetensors` file."""
    in_parts = base.is_dir() or base.name.endswith(_INDEX_SUFFIXES)
    return _beside(base, ".merged.safetensors" if in_parts else f".merged{base.suffix}")


def _beside(path: Path, ending: str) -> Path:
    for suffix in _INDEX_SUFFIXES:
        if path.name.endswith(suffix):
            return path.with_name(path.name.removesuffix(suffix) + ending)
    if path.is_dir():
        named = path if path.name not in ("", "..") else path.resolve()
        return named.with_name(named.name + ending)
    return path.with_name(path.stem + ending)


def check_output_folder(output: Path, inputs: Sequence[Path], force: bool) -> None:
    """Raise `OutputError` before any work is done, unless files can be put into the folder `output` without harm.

    It may be missing; one that is there with something in it needs `force`, and holds no input.
    """
    _check_parent(output)
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file; name a folder")
    for source in inputs:
        if output.exists() and source.exists() and (output.samefile(source) or output.samefile(source.parent)):
            raise OutputError(f"{output}: holds the input {source}; choose another folder")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise OutputError(f"{output}: exists; overwrite it with --force, or choose another folder")


def check_output(output: Path, inputs: Sequence[Path], force: bool) -> None:
    """Raise `OutputError` before any work is done, unless `output` can be written without harm.

    An input is never overwritten, under whatever name it is reached; another existing file only with `force`.
    """
    _check_parent(output)
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; name a file with -o")
    for source in inputs:
        if output.exists() and source.exists() and output.samefile(source):
            raise OutputError(f"{output}: is the input {source}, which is never overwritten; choose another with -o")
    if os.path.lexists(output) and not force:
        raise OutputError(f"{output}: exists; overwrite it with --force, or choose another with -o")


def _check_parent(output: Path) -> None:
    folder = output.parent
    if not folder.is_dir():
        raise OutputError(f"{output}: there is no folder {folder}; create it, or choose another place with -o")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{output}: the folder {folder} is not writable; choose another place with -o")
