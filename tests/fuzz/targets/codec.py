"""Streams of pcodec, the one decoder of numbers that is not ours."""

import random
from pathlib import Path

import torch

from rst.delta.pcodec_stream import compress, decompress
from rst.files.budget import Budget
from tests.fuzz.byte_mutation import mutate_bytes
from tests.fuzz.target import Target

_DTYPES = (torch.int64, torch.float32, torch.bfloat16, torch.int8)


def seeds() -> list[bytes]:
    generator = torch.Generator().manual_seed(0)
    arrays = [
        torch.randint(0, 1000, (3000,), generator=generator),
        torch.randn(3000, generator=generator),
        torch.randn(300, generator=generator).bfloat16(),
        torch.zeros(20_000, dtype=torch.int64),
        torch.randint(0, 9, (300,), generator=generator).to(torch.int8),
        torch.randn(300, generator=generator) // 0.01 * 0.01,
        torch.arange(300) * 17 + 5,
    ]
    streams = [(_DTYPES.index(array.dtype), compress(array, [array.numel()])) for array in arrays]
    return [bytes([kind]) + stream.numpy().tobytes() for kind, stream in streams]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Mostly the stream behind its count, whose format pcodec has to judge."""
    kept = 9 if rng.random() < 0.9 else 0
    return data[:kept] + mutate_bytes(rng, data[kept:])


def read(path: Path) -> torch.Tensor:
    data = path.read_bytes() or b"\0"
    dtype = _DTYPES[data[0] % len(_DTYPES)]
    stream = torch.frombuffer(bytearray(data[1:] or b"\0"), dtype=torch.uint8)
    return decompress(str(path), "values", stream, dtype, Budget(len(data)))


STREAM = Target("codec", "x.stream", seeds, mutate, read)
