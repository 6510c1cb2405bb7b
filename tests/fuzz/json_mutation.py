"""JSON that a hostile author would write: anything that can be put into text, not only what Python would write."""

import json
import random
from typing import Any

_TOKENS = (
    "null", "true", "false", "NaN", "Infinity", "-Infinity", "1e999", "-1", "0", "-0.0", "1.5", "2147483648",
    "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 400, "[]", "{}", '""', '"1"',
    '"\\ud800"', '"\\u0000"', '"."', '".."', '"../x"', '"/etc/passwd"', '"a/b"', "[[]]", '{"a":{}}', "[1,[2,[3]]]",
    "[" * 200 + "]" * 200, "[" * 3000 + "]" * 3000, '{"a":' * 300 + "1" + "}" * 300, '"F32"', '"BOOL"', '"C64"', '"F4"',
    '"' + "x" * 5000 + '"', "[" + "0," * 70 + "0]", "[0,4611686018427387904,4611686018427387904]",
)  # fmt: skip


class Pairs(list[tuple[str, Any]]):
    """An object as its pairs, so that a key may stand twice."""


class Text(str):
    """A piece of JSON as it is to be written."""


def parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=Pairs)


def dump(value: Any) -> str:
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(str(key))}:{dump(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """One change at a random place of a parsed value, which is altered."""
    places = list(_places(value))
    if not places:
        return Text(rng.choice(_TOKENS))
    container, index = rng.choice(places)
    item = container[index][1] if isinstance(container, Pairs) else container[index]
    kind = rng.randrange(10)
    if kind == 0:
        del container[index]
    elif kind == 1:
        container.insert(rng.randrange(len(container) + 1), container[index])
    elif kind == 2 and isinstance(container, Pairs):
        container[index] = (rng.choice(_names(rng, container)), item)
    elif kind == 3 and len(places) > 1:
        other, place = rng.choice(places)
        _put(container, index, other[place][1] if isinstance(other, Pairs) else other[place])
    elif kind == 4 and isinstance(item, int):
        _put(container, index, item + rng.choice([1, -1, 7, 1 << 31, 1 << 62, -item * 2]))
    elif kind == 5 and isinstance(item, (int, float)):
        _put(container, index, str(item))
    else:
        _put(container, index, Text(rng.choice(_TOKENS)))
    return value


def _names(rng: random.Random, container: Pairs) -> list[str]:
    return ["", "x", "\0", "\ud800", "__metadata__", container[rng.randrange(len(container))][0]]


def _put(container: Any, index: int, item: Any) -> None:
    container[index] = (container[index][0], item) if isinstance(container, Pairs) else item


def _places(value: Any) -> Any:
    if isinstance(value, Pairs):
        for index, (_, item) in enumerate(value):
            yield value, index
            yield from _places(item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield value, index
            yield from _places(item)
