"""An adapter as a folder: `delta.safetensors`, `rst_config.json` and a model card, as `save_pretrained` leaves it.

Not `adapter_config.json`: transformers sees that name and hands the folder to PEFT.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rst.delta.file import CONFIG_FILE, DELTA_FILE, FOLDER_VERSION, read_settings
from rst.delta.sparse_delta import BaseIdentity, Encoding, SparseDelta
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
        raise ConfigError(f"adapter {adapter_name!r}: the name cannot be that of a folder")
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
    write_settings(path, delta.config, delta.base)
    if not (path / CARD_FILE).exists():
        with atomic_write(path / CARD_FILE) as temporary:
            temporary.write_text(model_card(delta, (path / DELTA_FILE).stat().st_size))


def write_settings(folder: str | os.PathLike[str], config: Mapping[str, Any], base: BaseIdentity | None = None) -> None:
    """Write `rst_config.json`; without a `base`, the one that a file there names stays.

    Raises:
        DeltaFormatError: the file that is there is damaged.
        OSError: the folder cannot be made or written.
    """
    path = Path(folder) / CONFIG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    if base is None:
        base = read_settings(path.parent)[1] if path.exists() else BaseIdentity()
    content = {
        "format": "rst",
        "format_version": FOLDER_VERSION,
        "library_version": __version__,
        "base_model_name_or_path": base.name,
        "base_model_revision": base.revision,
        "config": dict(config),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
