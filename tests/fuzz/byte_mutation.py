"""Bytes changed here and there."""

import random

_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, overwrite, insert, drop or repeat something, once or a few times."""
    altered = bytearray(data or b"\0")
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        place, kind = rng.randrange(len(altered)), rng.randrange(6)
        if kind == 0:
            altered[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            altered[place] = rng.randrange(256)
        elif kind == 2:
            width = rng.choice([1, 2, 4, 8])
            number = rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)
            altered[place : place + width] = number.to_bytes(width, "little")
        elif kind == 3:
            del altered[place : place + rng.choice([1, 2, 8, 100])]
        elif kind == 4:
            altered[place:place] = rng.randbytes(rng.choice([1, 2, 8, 100]))
        else:
            source = rng.randrange(len(altered))
            altered[place:place] = altered[source : source + rng.choice([1, 8, 64])]
        if not altered:
            break
    return bytes(altered)
