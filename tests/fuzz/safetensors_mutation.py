"""safetensors files altered in their parts, with a digest that is right again: a hostile author can compute one too."""

import random
import zlib
from typing import Any

from blake3 import blake3

from rst.delta.embedded_digest import BLANK
from tests.fuzz.byte_mutation import mutate_bytes
from tests.fuzz.json_mutation import Pairs, dump, mutate_json, parse

_FIELD = b'"digest":"'
_LARGEST = 1 << 16  # bytes of records that are worth altering


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """One change of the header, of JSON inside it, of a stream, of an array's bytes, or anywhere."""
    try:
        return _mutate_parts(rng, data)
    except (
        RecursionError,
        IndexError,
        TypeError,
        ValueError,
        OverflowError,
    ):  # too odd already to be changed once more
        return reseal(mutate_bytes(rng, data))


def _mutate_parts(rng: random.Random, data: bytes) -> bytes:
    parts = _split(data)
    kind = rng.randrange(12)
    if parts is None or kind == 0:
        return reseal(mutate_bytes(rng, data))
    header, payload = parts
    if kind == 1:
        length = rng.choice([0, 1, len(payload), 1 << 27, 1 << 62, (1 << 64) - 1])
        return length.to_bytes(8, "little") + data[8:]
    if kind < 5:
        mutate_json(rng, header)
    elif kind < 8:
        _mutate_inner(rng, header)
    elif kind < 10 and payload:
        payload = _mutate_records(rng, header, payload)
    elif payload:
        payload = _mutate_array(rng, header, payload)
    altered = _join(header, payload)
    return altered if rng.random() < 0.03 else reseal(altered)


def reseal(data: bytes) -> bytes:
    """Put the right digest where one is."""
    end = 8 + int.from_bytes(data[:8], "little")
    place = data.find(_FIELD, 0, end) + len(_FIELD)
    if place < len(_FIELD) or end > len(data):
        return data
    blank = data[:place] + BLANK.encode() + data[place + len(BLANK) :]
    return data[:place] + blake3(blank).hexdigest()[: len(BLANK)].encode() + data[place + len(BLANK) :]


def _split(data: bytes) -> tuple[Pairs, bytes] | None:
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        header = parse(data[8:end].decode())
    except (ValueError, RecursionError):
        return None
    return (header, data[end:]) if isinstance(header, Pairs) and header else None


def _join(header: Pairs, payload: bytes) -> bytes:
    text = dump(header).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload


def _mutate_inner(rng: random.Random, header: Pairs) -> None:
    """Change the JSON that stands in a string of the metadata."""
    metadata = next((value for key, value in header if key == "__metadata__"), None)
    if not isinstance(metadata, Pairs) or not metadata:
        return
    index = rng.randrange(len(metadata))
    key, text = metadata[index]
    try:
        inner = parse(text)
    except (ValueError, TypeError, RecursionError):
        metadata[index] = (
            key,
            rng.choice(["", "0", "x", "\0", str(text) * 2, "replace", "step", "add", "packed", "coo"]),
        )
        return
    for _ in range(rng.choice([1, 1, 2])):
        inner = mutate_json(rng, inner)
    metadata[index] = (key, dump(inner))


def _entries(header: Pairs) -> list[tuple[int, str, dict[str, Any]]]:
    found = []
    for index, (name, entry) in enumerate(header):
        if isinstance(entry, Pairs) and name != "__metadata__":
            fields = dict(entry)
            offsets = fields.get("data_offsets")
            if isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets):
                found.append((index, name, fields))
    return found


def _mutate_array(rng: random.Random, header: Pairs, payload: bytes) -> bytes:
    entries = _entries(header)
    if not entries:
        return mutate_bytes(rng, payload)
    index, _, fields = rng.choice(entries)
    start, end = fields["data_offsets"]
    return _replaced(header, payload, index, mutate_bytes(rng, payload[start:end]))


def _mutate_records(rng: random.Random, header: Pairs, payload: bytes) -> bytes:
    """Change the compressed records of encoding "packed", or anything where there are none."""
    for index, name, fields in _entries(header):
        if name == "records":
            start, end = fields["data_offsets"]
            try:
                records = parse(zlib.decompressobj().decompress(payload[start:end], _LARGEST).decode())  # a bomb is cut
            except (zlib.error, ValueError, RecursionError):
                break
            text = dump(mutate_json(rng, records))
            if rng.random() < 0.02:
                text = rng.choice(
                    ["[" * 10_000_000, "[" + "{}," * 4_000_000 + "{}]", " " * (1 << 26), "[" + '"",' * 1_000_000]
                )
            return _replaced(header, payload, index, zlib.compress(text.encode("utf-8", "replace")))
    return _mutate_array(rng, header, payload)


def _replaced(header: Pairs, payload: bytes, index: int, stream: bytes) -> bytes:
    """Put other bytes in an array's place, and move what comes after; a stream's shape follows."""
    name, entry = header[index]
    fields = dict(entry)
    start, end = fields["data_offsets"]
    shift = len(stream) - (end - start)
    fields["data_offsets"] = [start, end + shift]
    if fields.get("dtype") == "U8":
        fields["shape"] = [len(stream)]
    header[index] = (name, Pairs(fields.items()))
    for other, (other_name, other_entry) in enumerate(header):
        if other != index and isinstance(other_entry, Pairs) and other_name != "__metadata__":
            moved = dict(other_entry)
            offsets = moved.get("data_offsets")
            if isinstance(offsets, list) and all(type(offset) is int for offset in offsets) and offsets[0] >= end:
                moved["data_offsets"] = [offset + shift for offset in offsets]
                header[other] = (other_name, Pairs(moved.items()))
    return payload[:start] + stream + payload[end:]


def mutate_text(rng: random.Random, data: bytes) -> bytes:
    """One change of a JSON file, or of its bytes."""
    if rng.random() < 0.1:
        return mutate_bytes(rng, data)
    try:
        value = parse(data.decode())
        for _ in range(rng.choice([1, 1, 2, 3])):
            value = mutate_json(rng, value)
        return dump(value).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data)
