"""The state of a set of weights in 16 hexadecimal digits, updated in O(changed weights).

It is the sum, modulo 2^64, of one 64-bit hash for each word of 8 bytes and each tensor (a sum of hashes of (place,
value) is Bellare and Micciancio's incremental hashing, 1997, here with splitmix64's finalizer as the hash):

    F = sum_t mix(seed_t) + sum_t sum_k mix(seed_t + k * P + word_t[k] * Q)

`seed_t` is computed from the tensor's name, dtype and shape; word k holds the weights of the row-major positions from k
n on, n = 8 / bytes of a weight (see `rst.sync.words`). A step subtracts the old hashes of the words it touches and adds
the new ones. Chains of version 1 hash each weight as a word of its own, which takes n times as long.

It detects any change within a single word, and so of a single weight, with certainty (`mix` is a bijection). Any other
accident, such as swapped weights, renamed tensors, or a step left out or applied twice, goes unnoticed with a chance of
2^-64. It does not protect against an attacker who chooses weights to collide. Because it is updated in O(changed
weights), it covers only the words that steps have touched: `Follower.verify` reads all of them.
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
"""The version of new chains, which hash words of 8 bytes. Version 1 hashes each weight."""


def fingerprint_state(weights: Mapping[str, Tensor], version: int = STATE_VERSION) -> str:
    """Compute the state of all weights, 16 hexadecimal digits, in O(weights). On the CPU and on a GPU it is the same.

    Args:
        weights: tensors of any shape and non-complex dtype by name, in any order.
        version: version of the chain, `Pointer.version`.

    Raises:
        ParameterMismatchError: a complex tensor.
    """
    hashed = hash_sum(part for name, weight in weights.items() for part in _parts(name, weight, version))
    return state_of({name: (weight.dtype, tuple(weight.shape)) for name, weight in weights.items()}, hashed)


def _parts(name: str, weight: Tensor, version: int) -> Iterator[Part]:
    """Yield the words of a tensor: those that it fills, and the last one."""
    check_real(name, weight)
    flat, each = weight.detach().reshape(-1), weights_a_word(weight.dtype, version)
    seed = seed_of(name, weight.dtype, tuple(weight.shape))
    yield seed, None, whole_words(flat, each)
    if flat.numel() % each:
        last = last_word(flat, each)
        yield seed, torch.full_like(last, flat.numel() // each, dtype=torch.int64), last


def state_of(specs: Mapping[str, TensorSpec], hashed: int) -> str:
    """Compute the state from the hash of all words, which may be a sum over blocks."""
    return _digits(hashed + sum(mix(seed_of(name, *spec)) for name, spec in specs.items()))


def hash_change(name: str, dtype: torch.dtype, shape: tuple[int, ...], words: Words) -> int:
    """Compute the change of the hash of all words by the touched words of one tensor.

    Args:
        name: the tensor's name.
        dtype: its dtype.
        shape: its shape.
        words: the touched words.
    """
    seed = seed_of(name, dtype, shape)
    return hash_at(seed, words.places, words.new) - hash_at(seed, words.places, words.old)


def hash_changes(specs: Mapping[str, TensorSpec], words: Mapping[str, Words]) -> int:
    """Compute the change of the hash of all words by the touched words, given by tensor name."""
    seeds = {name: seed_of(name, *specs[name]) for name in words}
    after = hash_sum((seeds[name], touched.places, touched.new) for name, touched in words.items())
    return after - hash_sum((seeds[name], touched.places, touched.old) for name, touched in words.items())


def changed_state(state: str, change: int) -> str:
    """Compute the state after a change of the hash of all words."""
    return _digits(int(state, 16) + change)


def seed_of(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Return the seed of a tensor's hashes."""
    digits = digest_text(f"{name} {dtype} {list(shape)}")[:16]
    return int.from_bytes(bytes.fromhex(digits), "little")


def _digits(hashed: int) -> str:
    return f"{hashed & MASK:016x}"
