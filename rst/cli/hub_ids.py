"""Hub ids (`owner/name` or `owner/name@revision`) in place of paths: downloaded to the hub's cache, or found there."""

import re
from pathlib import Path

_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
_FILE_SUFFIXES = frozenset((".safetensors", ".pt", ".pth", ".ckpt", ".th", ".bin", ".json"))
_BESIDE_WEIGHTS = ("*.json", "*.txt", "*.model", "*.jinja")  # settings and tokenizer, for merged folders
_NOT_NEEDED = ("*.fp16.*", "*.bf16.*", "onnx/*", "openvino/*", "original/*", "checkpoint-*")


def local_delta(path: Path, *, whole: bool = False) -> Path:
    """Return a delta's path: `path` itself if it exists, otherwise the adapter folder of that id in the hub's cache.

    Args:
        path: a local path, or an id.
        whole: download all files, which a signature covers.

    Raises:
        CheckpointError: neither a local file or folder nor an adapter on the hub.
    """
    from rst.live.hub import download_adapter, find_adapter

    if (found := hub_id(path)) is None:
        return path
    repository, revision = found
    return (download_adapter if whole else find_adapter)(repository, revision=revision)


def local_weights(path: Path) -> Path:
    """Return the path of weights: `path` itself if it exists, otherwise the folder of that id in the hub's cache.

    From a repository, safetensors and the files beside them are downloaded; pickles only if it has nothing else.

    Raises:
        CheckpointError: neither a local file or folder nor a repository on the hub.
    """
    if (found := hub_id(path)) is None:
        return path
    folder = _snapshot(*found, "*.safetensors")
    if not any(folder.rglob("*.safetensors")):
        folder = _snapshot(*found, "*.bin")
    return folder


def hub_id(path: Path) -> tuple[str, str | None] | None:
    """Return repository and revision, unless a local path of that name, or its parent folder, exists."""
    text = path.as_posix()
    if path.exists() or path.parent.is_dir() or path.suffix in _FILE_SUFFIXES or not (found := _ID.fullmatch(text)):
        return None
    return found[1], found[2]


def _snapshot(repository: str, revision: str | None, weights: str) -> Path:
    from rst.live.hub import download_folder

    wanted = [weights, *_BESIDE_WEIGHTS]
    return download_folder(repository, revision=revision, allow_patterns=wanted, ignore_patterns=list(_NOT_NEEDED))
