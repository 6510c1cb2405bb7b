"""The base of all settings: type checks on creation, conversion to JSON and back, a fingerprint."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

S = TypeVar("S", bound="ExperimentSettings")


class SettingsError(ValueError):
    """A configuration that cannot be run; the message names the file and the key."""


@dataclass(frozen=True, kw_only=True)
class ExperimentSettings:
    """What decides the numbers of a run; an experiment's own settings are the fields of a subclass."""

    def __post_init__(self) -> None:
        """Refuse a value of the wrong type. Raises `SettingsError` naming the key."""
        for entry in fields(self):
            _check_type(entry.name, getattr(self, entry.name), entry.type)

    def refuse_below_one(self, *names: str) -> None:
        """Raise `SettingsError` naming the first of these that is less than 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")

    def refuse_negative(self, *names: str) -> None:
        """Raise `SettingsError` naming the first of these that is less than 0."""
        for name in names:
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} must not be negative, got {getattr(self, name)}")

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any]) -> S:
        """Build from YAML or JSON types. Raises `SettingsError` naming the key that is unknown, missing or wrong."""
        known = {entry.name: entry for entry in fields(cls)}
        if unknown := sorted(values.keys() - known.keys()):
            raise SettingsError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
        for name, entry in known.items():
            if name not in values and entry.default is MISSING and entry.default_factory is MISSING:
                raise SettingsError(f"missing key {name!r}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON types."""
        values = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any setting."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def _check_type(name: str, value: Any, wanted: Any) -> None:
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        if value not in parts:
            raise SettingsError(f"{name} must be one of {', '.join(parts)}, got {value!r}")
        return
    if origin is tuple:
        _check_tuple(name, value, parts)
        return
    # `str | None` is a type that isinstance takes, `Mapping[str, Any]` is not
    allowed = int | float if wanted is float else wanted if origin is UnionType else origin or wanted
    if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
        kind = getattr(wanted, "__name__", str(wanted))
        hint = _yaml_hint(value) if wanted is float else ""
        raise SettingsError(f"{name} must be {kind}, got {value!r}{hint}")


def _check_tuple(name: str, value: Any, kinds: tuple[Any, ...]) -> None:
    """Check against `tuple[str, ...]` or, a type each, `tuple[float, float]`."""
    any_length = kinds[-1] is Ellipsis
    if not isinstance(value, tuple) or not (any_length or len(value) == len(kinds)):
        raise SettingsError(f"{name} must be {'tuple' if any_length else f'{len(kinds)} numbers'}, got {value!r}")
    for item, kind in zip(value, kinds[:1] * len(value) if any_length else kinds, strict=True):
        _check_type(name, item, kind)


def _yaml_hint(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"\d+e-\d+", value):
        return f" (YAML reads {value} as text: write {value.replace('e', '.0e')})"
    return ""
