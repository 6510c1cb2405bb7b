"""The folder of an adapter, which `save_pretrained` writes: `delta.safetensors`, `rst_config.json` and a model card.

It has no `adapter_config.json`, because transformers passes folders with that file to PEFT.
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
    """Return the folder where PEFT puts one of several adapters: `folder` for "default", a subfolder for others.

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
    """Write a delta, its configuration and its card; each file is written atomically.

    An existing card is kept, because a user may have edited it.

    Raises:
        OSError: the folder cannot be created or written.
        RSTError: the errors of `SparseDelta.save`.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    delta.save(path / DELTA_FILE, encoding)
    write_settings(path, delta.config, delta.base)
    if not (path / CARD_FILE).exists():
        with atomic_write(path / CARD_FILE) as temporary:
            temporary.write_text(model_card(delta, (path / DELTA_FILE).stat().st_size))


def write_settings(folder: str | os.PathLike[str], config: Mapping[str, Any], base: BaseIdentity | None = None) -> None:
    """Write `rst_config.json`. Without a `base`, the base that an existing file names is kept.

    Raises:
        DeltaFormatError: the existing file is damaged.
        OSError: the folder cannot be created or written.
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
