"""The `config.json` of a model: of a module of transformers what its `save_pretrained` writes, of a folder the file."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rst.naming import unwrap

CONFIG = "config.json"
# Of the weights' own form, which a base has whatever was tuned from it.
_OF_THE_BASE = ("dtype", "torch_dtype", "quantization_config")


def config_of_module(module: nn.Module) -> Mapping[str, Any] | None:
    """The settings that a module of transformers would be saved with; None of any other module."""
    module = unwrap(module)
    config = getattr(module, "config", None)
    if not (hasattr(config, "to_json_string") and hasattr(module, "save_pretrained")):
        return None
    written: Any = copy.deepcopy(config)
    written.architectures = [type(module).__name__.removeprefix("FSDP")]
    return _object(written.to_json_string())


def config_in_folder(folder: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """The settings in a model's folder; None where there are none, or none that can be read."""
    try:
        return _object((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whose it is nobody can tell; it is copied
        return None


def tuned_config(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """A tuned model's settings for weights of the base's form: dtype and quantisation stay, at every level."""
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
