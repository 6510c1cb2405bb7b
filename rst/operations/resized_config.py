"""The `config.json` of a merged folder: the base's, with the vocabulary as large as the tuned embeddings."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rst.errors import RSTWarning
from rst.operations.merged_tensors import MergedTensors

CONFIG: Final = "config.json"
_SIZE = "vocab_size"


def resized_config(config: Path, merged: MergedTensors) -> str:
    """The text of a base's `config.json`, as it is unless the delta stores whole tensors of another shape.

    `vocab_size` follows those whose rows were as many; of others a `RSTWarning` says that the settings are the base's.
    """
    text = config.read_text(encoding="utf-8")
    resized = {
        name: (tuple(merged.base.outline(name).shape), tuple(tensor.shape))
        for name, tensor in merged.whole.items()
        if name in merged.base and merged.base.outline(name).shape != tensor.shape
    }
    if not resized:
        return text
    settings = _parsed(text)
    followed = False
    for name, (before, after) in resized.items():
        holders = [
            holder for holder in _holders(settings) if before[1:] == after[1:] and before and holder[_SIZE] == before[0]
        ]
        for holder in holders:
            holder[_SIZE] = after[0]
        followed |= bool(holders)
        if not any(holder[_SIZE] == after[0] for holder in _holders(settings)):
            warnings.warn(
                f"{name} was {before} in the base and is {after} now, but config.json is the base's; put the tuned "
                "model's config.json in its place before the folder is loaded",
                RSTWarning,
                stacklevel=2,
            )
    return json.dumps(settings, indent=2) + "\n" if followed else text


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # whose it is nobody can tell; it is copied
        return {}


def _holders(settings: Any) -> Iterator[dict[str, Any]]:
    """The settings that have a vocabulary: the model's own, or those of its text part."""
    for part in (settings, *(settings.values() if isinstance(settings, dict) else ())):
        if isinstance(part, dict) and isinstance(part.get(_SIZE), int):
            yield part
