"""The fingerprint of a whole set of weights, brought up to date in O(changed weights).

A state's fingerprint is the sum, modulo 2^64, of one 64-bit hash for each weight and each tensor (a sum of hashes of
(place, value) is Bellare and Micciancio's incremental hashing, 1997, here with splitmix64's finalizer as the hash):

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

from rst.exactness import bits
from rst.fingerprint import digest_text
from rst.parameter_delta import check_real

_CPU_CHUNK, _DEVICE_CHUNK = 1 << 15, 1 << 24
_MASK = (1 << 64) - 1
_PLACE, _VALUE = 0x9E3779B97F4A7C15 - (1 << 64), 0x2545F4914F6CDD1D  # odd, as signed integers
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


def fingerprint_state(weights: Mapping[str, Tensor]) -> str:
    """Fingerprint all weights, 16 hexadecimal digits, in O(weights). On the CPU and on a GPU it is the same.

    Args:
        weights: tensors of any shape and non-complex dtype by name; their order does not count.

    Raises:
        ParameterMismatchError: a complex tensor.
    """
    return to_text(sum_of_state(weights))


def sum_of_state(weights: Mapping[str, Tensor]) -> int:
    """The fingerprint as an integer in [0, 2^64), to be changed by `sum_of_change`."""
    total = 0
    for name, weight in weights.items():
        check_real(name, weight)
        seed = _seed(name, weight.dtype, tuple(weight.shape))
        flat = weight.detach().reshape(-1)
        total += _mixed(torch.tensor([seed])) + _sum_of_tensor(seed, flat)
    return total & _MASK


def sum_of_change(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], positions: Tensor, old: Tensor, new: Tensor
) -> int:
    """What the fingerprint of a state gains when weights of one tensor go from `old` to `new`.

    Args:
        name: the tensor's name.
        dtype: its dtype.
        shape: its shape.
        positions: row-major, shape (nnz,).
        old: the values there before, shape (nnz,), floats or their bits.
        new: the values afterwards.
    """
    places = positions.to(old.device, torch.int64) * _PLACE + _seed(name, dtype, shape)
    return (_sum_of_values(places, new) - _sum_of_values(places, old)) & _MASK


def to_text(total: int) -> str:
    """The fingerprint as it is written: 16 hexadecimal digits."""
    return f"{total & _MASK:016x}"


def _seed(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    digits = digest_text(f"{name} {dtype} {list(shape)}")[:16]
    return int.from_bytes(bytes.fromhex(digits), "little", signed=True)


@torch.no_grad()
def _sum_of_tensor(seed: int, flat: Tensor) -> int:
    chunk = _CPU_CHUNK if flat.device.type == "cpu" else _DEVICE_CHUNK
    steps = torch.arange(min(chunk, flat.numel()), device=flat.device) * _PLACE
    total = 0
    for start in range(0, flat.numel(), chunk):
        part = flat[start : start + chunk]
        offset = torch.tensor(start, device=flat.device) * _PLACE + seed
        total += _sum_of_values(steps[: part.numel()] + offset, part)
    return total


def _sum_of_values(places: Tensor, values: Tensor) -> int:
    return _mixed(bits(values).to(torch.int64).mul(_VALUE).add_(places))


def _mixed(hashes: Tensor) -> int:
    """Sum of splitmix64's finalizer over int64 numbers, which it overwrites."""
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        hashes.bitwise_xor_(_shifted(hashes, shift)).mul_(factor)
    return int(hashes.bitwise_xor_(_shifted(hashes, 31)).sum())


def _shifted(hashes: Tensor, by: int) -> Tensor:
    """Shift right, zeros coming in: torch's own shift of int64 brings in the sign."""
    return (hashes >> by).bitwise_and_((1 << (64 - by)) - 1)
