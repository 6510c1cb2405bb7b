"""BLAKE3 digests of tensors: they tell one base model from another, and an altered file from an intact one."""

import torch
from torch import Tensor

_HEX_DIGITS = 32  # 128 bits: no accident and no search finds two tensors alike


def digest(tensor: Tensor) -> str:
    """Digest the elements of a tensor in row-major order, 32 hexadecimal digits; shape and dtype are not part of it."""
    from blake3 import blake3

    contiguous = tensor.detach().cpu().contiguous().reshape(-1)
    return blake3(contiguous.view(torch.uint8).numpy().data, max_threads=blake3.AUTO).hexdigest()[:_HEX_DIGITS]


def digest_text(text: str) -> str:
    """Digest a string, 32 hexadecimal digits."""
    from blake3 import blake3

    return blake3(text.encode()).hexdigest()[:_HEX_DIGITS]
