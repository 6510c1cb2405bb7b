"""What lies beside the weights in a model's folder: the settings and the tokenizer, without which they do not load."""

from collections.abc import Sequence
from pathlib import Path

_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".py"}


def companion_files(base: Path, weights: Sequence[Path]) -> list[Path]:
    """The settings, tokenizer and code beside a folder's weights, sorted; none for a file, and none from subfolders."""
    if not base.is_dir():
        return []
    return sorted(path for path in base.iterdir() if _belongs(path) and path not in weights)


def _belongs(path: Path) -> bool:
    hidden, index = path.name.startswith("."), path.name.endswith(".index.json")
    return path.suffix in _SUFFIXES and path.is_file() and not hidden and not index
