"""BLAKE3 digests of tensors: they tell one base model from another, and an altered file from an intact one."""

import torch
from torch import Tensor

# A tensor's digest guards against accidents (the wrong checkpoint, a flipped bit), one tensor at a time: at 64 bits a
# million wrong tensors have one chance in 2^44 to pass for right. Who can choose the base needs no collision.
_TENSOR_DIGITS = 16
TEXT_DIGITS = 32


def digest(tensor: Tensor) -> str:
    """Digest the elements of a tensor in row-major order, 16 hexadecimal digits; shape and dtype are not part of it."""
    from blake3 import blake3

    contiguous = tensor.detach().cpu().contiguous().reshape(-1)
    return blake3(contiguous.view(torch.uint8).numpy().data, max_threads=blake3.AUTO).hexdigest()[:_TENSOR_DIGITS]


def digest_text(text: str) -> str:
    """Digest a string, 32 hexadecimal digits."""
    from blake3 import blake3

    return blake3(text.encode()).hexdigest()[:TEXT_DIGITS]
