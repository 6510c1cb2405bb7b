"""A model's `config.json`: what `save_pretrained` of a transformers module would write, or the file in a folder."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rst.naming import unwrap

CONFIG = "config.json"
# These describe how weights are stored, so the base's values stay whatever was tuned from it.
_OF_THE_BASE = ("dtype", "torch_dtype", "quantization_config")


def config_of_module(module: nn.Module) -> Mapping[str, Any] | None:
    """Return the settings that a transformers module would be saved with; None for any other module."""
    module = unwrap(module)
    config = getattr(module, "config", None)
    if not (hasattr(config, "to_json_string") and hasattr(module, "save_pretrained")):
        return None
    written: Any = copy.deepcopy(config)
    written.architectures = [type(module).__name__.removeprefix("FSDP")]
    return _object(written.to_json_string())


def config_in_folder(folder: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """Return the settings in a model's folder; None if there are none, or they cannot be read."""
    try:
        return _object((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whose it is nobody can tell; it is copied
        return None


def tuned_config(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tuned model's settings for weights in the base's form: its dtype and quantisation stay."""
    found = {name: value for name, value in tuned.items() if name not in _OF_THE_BASE}
    for name, value in base.items():
        if name in _OF_THE_BASE:
            found[name] = value
        elif isinstance(value, Mapping) and isinstance(found.get(name), Mapping):
            found[name] = tuned_config(value, found[name])
    return found


def _object(text: str) -> Mapping[str, Any] | None:
    found = json.loads(text)
    return found if isinstance(found, dict) else None
