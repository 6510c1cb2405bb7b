"""torch's two pickled formats, altered where the unpickler and the tensors are told what to be."""

import io
import random
import zipfile

from tests.fuzz.byte_mutation import mutate_bytes

# pieces of pickles: builders that weights_only allows, functions that it must not, memo and stack games
_PIECES = (
    b"cos\nsystem\n", b"cposix\nsystem\nX\x05\x00\x00\x00touchR", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nSize\n", b"cbuiltins\neval\n", b"c__builtin__\ngetattr\n", b"ccollections\nOrderedDict\n",
    b"q\x00", b"h\x00", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"p2147483647\n", b"\x97", b"\x98",
    b"\x96" + b"\xff" * 6 + b"\x00\x00",
    b"\x94", b"\x93", b"\x81", b"\x92", b"\x8e" + b"\xff" * 6 + b"\x00\x00", b"\x95" + b"\xff" * 6 + b"\x00\x00",
    b"(", b")", b"}", b"]", b"N", b"R", b"0", b"2", b"e", b"s", b"u", b"a", b"b", b".", b"\x88", b"\x89", b"\x8a\xff",
    b"X\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"K\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"M\xff\xff",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\x06\x00\x00\x00\x00\x00\x10", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"X\x0a\x00\x00\x00state_dict", b"X\x05\x00\x00\x00model", b"X\x03\x00\x00\x00\xed\xa0\x80",
)  # fmt: skip


def mutate_zip(rng: random.Random, data: bytes) -> bytes:
    """Change one member of a zip file, mostly the pickle."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # a damaged archive has no common class of errors
        return mutate_bytes(rng, data)
    if not members or rng.random() < 0.1:
        return mutate_bytes(rng, data)
    pickles = [name for name in members if name.endswith(".pkl")]
    name = rng.choice(pickles if pickles and rng.random() < 0.9 else list(members))
    members[name] = mutate_pickle(rng, members[name])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])) as archive:
        for member, contents in members.items():
            archive.writestr(member, contents)
    return packed.getvalue()


def mutate_pickle(rng: random.Random, data: bytes) -> bytes:
    """Put pieces of pickles in or over, or change bytes."""
    altered = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        if rng.random() < 0.5:
            altered = bytearray(mutate_bytes(rng, bytes(altered)))
            continue
        place, piece = rng.randrange(len(altered) + 1), rng.choice(_PIECES)
        altered[place : place + rng.choice([0, 1, len(piece)])] = piece
    return bytes(altered)
