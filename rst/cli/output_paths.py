"""Output paths: names derived from the inputs, and protection against overwriting."""

import os
from collections.abc import Sequence
from pathlib import Path

from rst.cli.hub_ids import hub_id
from rst.errors import RSTError

_INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")


class OutputError(RSTError):
    """The output would overwrite something, or its folder does not exist."""


def delta_beside(tuned: Path) -> Path:
    """Name the delta of a tuned checkpoint: `model.ckpt` gives `model.delta.safetensors` in the same folder."""
    return _beside(tuned, ".delta.safetensors")


def merged_beside(base: Path) -> Path:
    """Name a merged checkpoint: `base.pt` gives `base.merged.pt`, `base/` the folder `base.merged`, shards one file.

    For `owner/name` on the hub, the folder is `name.merged` here.
    """
    if base.is_dir() or hub_id(base):
        return _beside(base, ".merged")
    return _beside(base, ".merged.safetensors" if base.name.endswith(_INDEX_SUFFIXES) else f".merged{base.suffix}")


def _beside(path: Path, ending: str) -> Path:
    if found := hub_id(path):
        return Path(Path(found[0]).name + ending)
    for suffix in _INDEX_SUFFIXES:
        if path.name.endswith(suffix):
            return path.with_name(path.name.removesuffix(suffix) + ending)
    if path.is_dir():
        named = path if path.name not in ("", "..") else path.resolve()
        return named.with_name(named.name + ending)
    return path.with_name(path.stem + ending)


def check_output(
    output: Path, inputs: Sequence[Path], force: bool, *, kind: str | None = None, is_folder: bool = False
) -> None:
    """Raise `OutputError` before any work is done, unless `output` can be written without harm.

    An input is never overwritten, under whatever name it is reached; another existing file, or a folder that is not
    empty, only with `force`.

    Args:
        output: the output path.
        inputs: the input files.
        force: whether to overwrite.
        kind: the kind of output, if it must be a `.safetensors` file.
        is_folder: whether the output is a folder.
    """
    if kind and output.suffix != ".safetensors":
        raise OutputError(f"{kind} must be a .safetensors file; choose a name with that suffix", file=output)
    if not output.parent.is_dir():
        raise OutputError(f"there is no folder {output.parent}; create it, or choose another location", file=output)
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"the folder {output.parent} is not writable; choose another location", file=output)
    if output.exists() and output.is_dir() != is_folder:
        raise OutputError("is a file; name a folder" if is_folder else "is a folder; name a file", file=output)
    for source in inputs:
        if not (output.exists() and source.exists()):
            continue
        if output.samefile(source) or (is_folder and output.samefile(source.parent)):
            raise OutputError(
                f"is or contains the input {source}, which is never overwritten; choose another output", file=output
            )
    taken = output.is_dir() and any(output.iterdir()) if is_folder else os.path.lexists(output)
    if taken and not force:
        raise OutputError("already exists; overwrite it with --force, or choose another name", file=output)
