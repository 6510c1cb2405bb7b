"""Text without a download: sentences from a small grammar, as bytes, from which a model can learn something."""

import torch
from torch import Tensor

VOCABULARY = 256
_SUBJECTS = ("the fox", "a sailor", "my neighbour", "the old clock", "one student", "the north wind", "her cat")
_VERBS = ("watches", "remembers", "repairs", "follows", "paints", "forgets", "counts", "carries")
_OBJECTS = ("seven letters", "the harbour", "a broken lamp", "every river", "the long road", "two strangers")
_ENDINGS = ("before dawn", "in silence", "again and again", "without a map", "for its own sake", "since the spring")
_PARTS = (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS)


def batch(size: int, length: int, generator: torch.Generator) -> Tensor:
    """Byte values (size, length) int64 of running text."""
    return torch.stack([_line(length, generator) for _ in range(size)])


def _line(length: int, generator: torch.Generator) -> Tensor:
    text = ""
    while len(text) < length:
        words = [part[int(torch.randint(len(part), (), generator=generator))] for part in _PARTS]
        text += " ".join(words) + ". "
    return torch.tensor(list(text[:length].encode()))
