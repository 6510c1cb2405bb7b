"""Regular expressions from untrusted files: only those that Python's backtracking engine matches quickly.

The time of a match is bounded by the number of ways in which a pattern could match a name. That number is counted on
the parsed pattern: the counts of branches add up, those of consecutive parts multiply, and a repetition of something
that matches in one way has one way per length. Patterns that users type themselves are not checked here.
"""

import math
import re
from typing import Any

from rst.errors import ConfigError

try:
    from re import _parser as parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_parse as parser

_LONGEST_PATTERN = 1 << 18  # characters
_LONGEST_NAME = 128  # characters that a repetition may stretch over; few modules have longer names
_MOST_WAYS = 1 << 24  # three times `.*`, and a few branches


def check_quick(setting: str, pattern: str) -> None:
    """Raise `ConfigError` unless a pattern from a file is a regular expression that matches any name quickly."""
    shown = f"{setting}: {pattern[:99]!r}"
    if len(pattern) > _LONGEST_PATTERN:
        raise ConfigError(
            f"{shown} has {len(pattern)} characters; a pattern from a file may have at most {_LONGEST_PATTERN}"
        )
    try:
        re.compile(pattern)
        ways = _ways(parser.parse(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{shown} is not a regular expression ({error})") from error
    if ways > _MOST_WAYS:
        raise ConfigError(
            f"{shown} comes from a file and could take forever to match; use a list of names or their endings instead"
        )


def _ways(parsed: Any) -> float:
    ways = 1.0
    for kind, argument in parsed:
        ways *= _ways_of(str(kind), argument)
    return ways


def _ways_of(kind: str, argument: Any) -> float:
    if kind == "BRANCH":
        return sum(map(_ways, argument[1]))
    if kind == "SUBPATTERN":
        return _ways(argument[-1])
    if kind in ("ASSERT", "ASSERT_NOT"):
        return _ways(argument[1])
    if kind == "ATOMIC_GROUP":
        return _ways(argument)
    if kind.endswith("_REPEAT"):
        return _ways_of_repeat(*argument)
    return math.inf if kind.startswith("GROUPREF") else 1.0


def _ways_of_repeat(least: int, most: int, parsed: Any) -> float:
    once, least, most = _ways(parsed), min(int(least), _LONGEST_NAME), min(int(most), _LONGEST_NAME)
    if once == 1:
        return most - least + 1
    try:
        return once**most * (1 + most - least)
    except OverflowError:
        return math.inf
