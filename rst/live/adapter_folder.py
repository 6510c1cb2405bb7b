"""An adapter as a folder: `delta.safetensors`, `rst_config.json` and a model card, as `save_pretrained` leaves it.

Not `adapter_config.json`: transformers sees that name and hands the folder to PEFT.
"""

import json
import os
from pathlib import Path
from typing import Final

from rst.delta.file import CONFIG_FILE, DELTA_FILE, FOLDER_VERSION
from rst.delta.sparse_delta import Encoding, SparseDelta
from rst.errors import ConfigError
from rst.files.atomic import atomic_write
from rst.live.model_card import model_card
from rst.version import __version__

CARD_FILE: Final = "README.md"


def adapter_subfolder(folder: Path, adapter_name: str) -> Path:
    """Where PEFT puts one of several adapters: "default" into `folder` itself, others below it by name.

    Raises:
        ConfigError: the name would lead out of the folder.
    """
    if adapter_name == "default":
        return folder
    if adapter_name in ("", ".", "..") or Path(adapter_name).name != adapter_name or {"\\", "\0"} & {*adapter_name}:
        raise ConfigError(f"adapter {adapter_name!r}: not the name of a folder")
    if not (folder / adapter_name).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"adapter {adapter_name!r}: {folder / adapter_name} is a link that leads out of {folder}")
    return folder / adapter_name


def write_adapter(folder: str | os.PathLike[str], delta: SparseDelta, encoding: Encoding = "coo") -> None:
    """Write a delta, its configuration and its card; each file appears whole or not at all.

    A card that is there already is kept: somebody may have written in it.

    Raises:
        OSError: the folder cannot be made or written.
        RSTError: as `SparseDelta.save`.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    delta.save(path / DELTA_FILE, encoding)
    content = {
        "format": "rst",
        "format_version": FOLDER_VERSION,
        "library_version": __version__,
        "base_model_name_or_path": delta.base.name,
        "base_model_revision": delta.base.revision,
        "config": dict(delta.config),
    }
    with atomic_write(path / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    if not (path / CARD_FILE).exists():
        with atomic_write(path / CARD_FILE) as temporary:
            temporary.write_text(model_card(delta, (path / DELTA_FILE).stat().st_size))
