"""The state of a whole set of weights in 16 hexadecimal digits, brought up to date in O(changed weights).

It is the sum, modulo 2^64, of one 64-bit hash for each word of 8 bytes and each tensor (a sum of hashes of (place,
value) is Bellare and Micciancio's incremental hashing, 1997, here with splitmix64's finalizer as the hash):

    F = sum_t mix(seed_t) + sum_t sum_k mix(seed_t + k * P + word_t[k] * Q)

`seed_t` comes from the tensor's name, dtype and shape; word k has the weights of the row-major positions from k n on,
n = 8 / bytes of a weight (see `rst.sync.words`). A step subtracts the hashes of the words it touches as they were and
adds those of what they become. Chains of version 1 hash each weight as a word of its own, which takes n times as long.

What it detects: any change within a single word, and so of a single weight, for certain (`mix` is a bijection); any
other accident, such as weights swapped, tensors renamed, a step left out or applied twice, with a chance of 2^-64 to go
unnoticed. It is no protection against somebody who chooses weights to collide. Brought up to date in O(changed
weights), it also sees only the words that steps have touched: `Follower.verify` reads them all.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rst.delta.parameter_delta import check_real
from rst.files.safetensors_writer import TensorSpec
from rst.numerics.fingerprint import digest_text
from rst.sync.hashing import MASK, Part, hash_at, hash_sum, mix
from rst.sync.words import Words, last_word, weights_a_word, whole_words

STATE_VERSION = 2
"""What new chains hash: words of 8 bytes. 1 is each weight."""


def fingerprint_state(weights: Mapping[str, Tensor], version: int = STATE_VERSION) -> str:
    """Compute the state of all weights, 16 hexadecimal digits, in O(weights). On the CPU and on a GPU it is the same.

    Args:
        weights: tensors of any shape and non-complex dtype by name; their order does not count.
        version: of the chain, `Pointer.version`.

    Raises:
        ParameterMismatchError: a complex tensor.
    """
    hashed = hash_sum(part for name, weight in weights.items() for part in _parts(name, weight, version))
    return state_of({name: (weight.dtype, tuple(weight.shape)) for name, weight in weights.items()}, hashed)


def _parts(name: str, weight: Tensor, version: int) -> Iterator[Part]:
    """The words of a tensor: those that it fills, and the last."""
    check_real(name, weight)
    flat, each = weight.detach().reshape(-1), weights_a_word(weight.dtype, version)
    seed = seed_of(name, weight.dtype, tuple(weight.shape))
    yield seed, None, whole_words(flat, each)
    if flat.numel() % each:
        last = last_word(flat, each)
        yield seed, torch.full_like(last, flat.numel() // each, dtype=torch.int64), last


def state_of(specs: Mapping[str, TensorSpec], hashed: int) -> str:
    """Compute the state from the hash of all words, which may have been added up from that of blocks."""
    return _digits(hashed + sum(mix(seed_of(name, *spec)) for name, spec in specs.items()))


def hash_change(name: str, dtype: torch.dtype, shape: tuple[int, ...], words: Words) -> int:
    """Compute what a step adds to the hash of all words, by those of one tensor that it touches.

    Args:
        name: the tensor's name.
        dtype: its dtype.
        shape: its shape.
        words: those that it touches.
    """
    seed = seed_of(name, dtype, shape)
    return hash_at(seed, words.places, words.new) - hash_at(seed, words.places, words.old)


def hash_changes(specs: Mapping[str, TensorSpec], words: Mapping[str, Words]) -> int:
    """Compute what a step adds to the hash of all words, by those that it touches, by the names of their tensors."""
    seeds = {name: seed_of(name, *specs[name]) for name in words}
    after = hash_sum((seeds[name], touched.places, touched.new) for name, touched in words.items())
    return after - hash_sum((seeds[name], touched.places, touched.old) for name, touched in words.items())


def changed_state(state: str, change: int) -> str:
    """Compute what a state becomes when a step adds so much to the hash of all words."""
    return _digits(int(state, 16) + change)


def seed_of(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Where the hashes of a tensor begin."""
    digits = digest_text(f"{name} {dtype} {list(shape)}")[:16]
    return int.from_bytes(bytes.fromhex(digits), "little")


def _digits(hashed: int) -> str:
    return f"{hashed & MASK:016x}"
