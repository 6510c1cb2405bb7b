"""The state of a whole set of weights in 16 hexadecimal digits, brought up to date in O(changed weights).

It is the sum, modulo 2^64, of one 64-bit hash for each weight and each tensor (a sum of hashes of (place, value) is
Bellare and Micciancio's incremental hashing, 1997, here with splitmix64's finalizer as the hash):

    F = sum_t mix(seed_t) + sum_t sum_i mix(seed_t + i * P + bits(w_t[i]) * Q)

`seed_t` comes from the tensor's name, dtype and shape, `i` is the row-major position. A step subtracts the hashes of
the old values and adds those of the new.

What it detects: any change of a single weight for certain (`mix` is a bijection); any other accident, such as weights
swapped, tensors renamed, a step left out or applied twice, with a chance of 2^-64 to go unnoticed. It is no protection
against somebody who chooses weights to collide. Brought up to date in O(changed weights), it also sees only the weights
that steps have touched: `Follower.verify` reads them all.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rst.delta.parameter_delta import check_real
from rst.files.safetensors_writer import TensorSpec
from rst.numerics.fingerprint import digest_text
from rst.shards.blocks import Block
from rst.sync.hashing import MASK, hash_all, hash_at, mix

_PIECE = 1 << 22  # weights, whose places are written out


def fingerprint_state(weights: Mapping[str, Tensor]) -> str:
    """Compute the state of all weights, 16 hexadecimal digits, in O(weights). On the CPU and on a GPU it is the same.

    Args:
        weights: tensors of any shape and non-complex dtype by name; their order does not count.

    Raises:
        ParameterMismatchError: a complex tensor.
    """
    hashed = 0
    for name, weight in weights.items():
        check_real(name, weight)
        hashed += hash_all(_seed(name, weight.dtype, tuple(weight.shape)), weight.detach().reshape(-1))
    return state_of({name: (weight.dtype, tuple(weight.shape)) for name, weight in weights.items()}, hashed)


def state_of(specs: Mapping[str, TensorSpec], hashed: int) -> str:
    """Compute the state from the hash of all weights, which may have been added up from that of blocks."""
    return _digits(hashed + sum(mix(_seed(name, *spec)) for name, spec in specs.items()))


def hash_block(name: str, part: Tensor, block: Block) -> int:
    """Hash a block of a tensor, at its place in the whole.

    Args:
        name: the tensor's name.
        part: the block's weights, in its shape.
        block: where it lies.

    Raises:
        ParameterMismatchError: a complex tensor.
    """
    check_real(name, part)
    seed, flat = _seed(name, part.dtype, block.shape), part.detach().reshape(-1)
    hashed = 0
    for start in range(0, flat.numel(), _PIECE):
        piece = flat[start : start + _PIECE]
        inside = torch.arange(start, start + piece.numel(), device=flat.device)
        hashed += hash_at(seed, block.to_global(inside), piece)
    return hashed


def changed_state(
    state: str, name: str, dtype: torch.dtype, shape: tuple[int, ...], positions: Tensor, old: Tensor, new: Tensor
) -> str:
    """Compute what a state becomes when weights of one tensor go from `old` to `new`.

    Args:
        state: the state before.
        name: the tensor's name.
        dtype: its dtype.
        shape: its shape.
        positions: row-major, shape (nnz,).
        old: the values there before, shape (nnz,), floats or their bits.
        new: the values afterwards.
    """
    seed = _seed(name, dtype, shape)
    return _digits(int(state, 16) + hash_at(seed, positions, new) - hash_at(seed, positions, old))


def _digits(hashed: int) -> str:
    return f"{hashed & MASK:016x}"


def _seed(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    digits = digest_text(f"{name} {dtype} {list(shape)}")[:16]
    return int.from_bytes(bytes.fromhex(digits), "little")
