"""The `config.json` of a merged folder: the tuned model's if the delta has it, otherwise the base's, adjusted."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rst.checkpoints.model_config import CONFIG, config_in_folder, tuned_config
from rst.errors import RSTWarning
from rst.operations.merged_tensors import MergedTensors

_SIZE, _TYPE, _CLASSES = "vocab_size", "model_type", "architectures"


def merged_config(folder: Path, merged: MergedTensors) -> str:
    """Return the text of `config.json` for base plus delta, that of the base in `folder` if nothing changes.

    The tuned model's settings are used, except dtype and quantisation, which are the base's; and its class, if it has
    tensors that the base lacks. For a delta without settings, `vocab_size` follows whole tensors that had that many
    rows; for other tensors with another shape, a `RSTWarning` says that the settings are the base's.
    """
    text = (folder / CONFIG).read_text(encoding="utf-8")
    base, tuned = config_in_folder(folder), merged.delta.model_config
    if base is None:
        return text
    if tuned is not None and base.get(_TYPE) == tuned.get(_TYPE):
        settings = tuned_config(base, tuned)
        if _CLASSES in base and all(name in merged.base for name in merged.whole):
            settings[_CLASSES] = base[_CLASSES]
    else:
        settings = json.loads(text)
        _resize(settings, merged)
    return text if settings == base else json.dumps(settings, indent=2) + "\n"


def _resize(settings: dict[str, Any], merged: MergedTensors) -> None:
    resized = {
        name: (tuple(merged.base.outline(name).shape), tuple(tensor.shape))
        for name, tensor in merged.whole.items()
        if name in merged.base and merged.base.outline(name).shape != tensor.shape
    }
    for name, (before, after) in resized.items():
        for holder in _holders(settings):
            if before and before[1:] == after[1:] and holder[_SIZE] == before[0]:
                holder[_SIZE] = after[0]
        if not any(holder[_SIZE] == after[0] for holder in _holders(settings)):
            warnings.warn(
                f"{name} was {before} in the base and is {after} now, but {CONFIG} is the base's; replace it with "
                f"the tuned model's {CONFIG} before you load the folder",
                RSTWarning,
                stacklevel=2,
            )


def _holders(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the settings with a vocabulary: the model's own, or those of its text part."""
    for part in (settings, *settings.values()):
        if isinstance(part, dict) and isinstance(part.get(_SIZE), int):
            yield part
