"""Untrusted JSON: read if it is unambiguous, otherwise rejected with `ValueError`."""

import json
import math
from typing import Any

from rst.files.budget import check_settings


def parse_json(text: str | bytes) -> Any:
    """Read JSON in UTF-8.

    Raises:
        ValueError: invalid JSON; a duplicate key in one object; NaN or a float out of range; half a surrogate pair,
            which is not text; or too many levels for Python.
    """
    plain = text.decode() if isinstance(text, bytes) else text
    try:
        value = json.loads(plain, object_pairs_hook=_object, parse_float=_float, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if "\\u" in plain:
        _check_text(value)
    return value


def to_json(value: Any) -> str:
    """Return one line of JSON, the same for the same contents."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def check_depth(value: Any) -> Any:
    """Return settings that are neither too deep nor too many. Raises `ValueError` as `rst.files.budget`."""
    check_settings(value)
    return value


def typed(record: Any, key: str, *kinds: type) -> Any:
    """Return `record[key]`, of one of `kinds`; a bool is no number. Raises `KeyError` or `TypeError`."""
    value = record[key]
    if type(value) not in kinds:
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{key} is a {type(value).__name__}, not {wanted}")
    return value


def strings(values: Any, what: str) -> list[str]:
    """Return a list of text. Raises `TypeError`."""
    if type(values) is not list or not all(type(value) is str for value in values):
        raise TypeError(f"{what} is not a list of names")
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:99]!r} occurs twice in one object")
        found[name] = value
    return found


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _check_text(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise ValueError("half a surrogate pair, or nested too deeply") from error
