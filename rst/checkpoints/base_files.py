"""Names and shapes of the tensors in the files that a transformers model was loaded from, if available locally."""

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from rst.files.strict_json import parse_json, strings

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def names_in_base(model: nn.Module) -> Collection[str]:
    """Return the names in the model's folder or the hub's cache; empty if neither has them. Nothing is downloaded."""
    try:
        if index := _find(model, _INDEX):
            return strings(list(parse_json(index.read_bytes())["weight_map"]), "weight_map")
        if single := _find(model, _SINGLE):
            with safe_open(single, framework="pt") as file:
                return list(file.keys())
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):  # unreadable files have no names
        pass
    return ()


def shapes_in_base(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes in the available files of `names_in_base`, by name; reads only headers."""
    index = _find(model, _INDEX)
    found: dict[str, tuple[int, ...]] = {}
    try:
        files = set(parse_json(index.read_bytes())["weight_map"].values()) if index else {_SINGLE}
        for file_name in sorted(files):
            if path := _find(model, file_name):
                with safe_open(path, framework="pt") as file:
                    found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):  # unreadable files have no shapes
        pass
    return found


def _find(model: nn.Module, file: str) -> Path | None:
    name = getattr(model, "name_or_path", None)
    if not name:
        return None
    local = Path(name) / file
    if local.is_file():
        return local
    try:
        from huggingface_hub import try_to_load_from_cache

        revision = getattr(getattr(model, "config", None), "_commit_hash", None)
        found = try_to_load_from_cache(name, file, revision=revision)
    except (ImportError, ValueError):  # ValueError: not a valid repository name
        return None
    return Path(found) if isinstance(found, str) else None
