"""Words of 8 bytes, each with as many weights as fit: the units that the state of weights hashes.

Weights are placed in a word as in memory, the first in the lowest bytes; zero bits fill the last word of a tensor. In
chains of version 1 each weight is a word of its own: `each`, the number of weights per word, is 1, and the word has the
width of a weight.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rst.delta.parameter_delta import gather
from rst.numerics.exactness import bits

_BYTES = 8


class Words(NamedTuple):
    """The words that a step touches: their places in a tensor, and their bits before and after, all of shape (n,)."""

    places: Tensor
    old: Tensor
    new: Tensor


def weights_a_word(dtype: torch.dtype, version: int) -> int:
    """Return the number of weights of a dtype per word in chains of a version."""
    return 1 if version == 1 else _BYTES // dtype.itemsize


def whole_words(flat: Tensor, each: int) -> Tensor:
    """Return the n // each words that a tensor of shape (n,) fills; a view where its memory allows."""
    raw = bits(flat[: flat.numel() // each * each])
    if each == 1:
        return raw
    aligned = raw.is_contiguous() and raw.storage_offset() % each == 0
    return (raw if aligned else raw.clone()).view(torch.int64)


def last_word(flat: Tensor, each: int) -> Tensor:
    """Return the incomplete last word, shape (1,), or shape (0,) if the weights fill all words."""
    rest = flat[flat.numel() // each * each :]
    return words_with(torch.arange(rest.numel(), device=flat.device), rest, min(rest.numel(), 1), each)


def words_at(weights: Tensor, places: Tensor, each: int) -> Tensor:
    """Return the words at sorted places, int64 of shape (n,), of a tensor in any memory format."""
    if not weights.is_contiguous():
        slots = (places[:, None] * each + torch.arange(each, device=places.device)).reshape(-1)
        inside = (slots < weights.numel()).nonzero().squeeze(1)
        found = bits(weights)[torch.unravel_index(slots[inside], weights.shape)]
        return words_with(inside, found, places.numel(), each)
    flat = weights.reshape(-1)
    whole = whole_words(flat, each)
    if places.numel() and int(places[-1]) == whole.numel():
        return torch.cat([whole.index_select(0, places[:-1]), last_word(flat, each)])
    return whole.index_select(0, places)


def words_with(slots: Tensor, values: Tensor, count: int, each: int, words: Tensor | None = None) -> Tensor:
    """Make `count` words with `values` at weight indices `slots`, and the content of `words` elsewhere."""
    raw = bits(values)
    made = raw.new_zeros(count, dtype=raw.dtype if each == 1 else torch.int64) if words is None else words.clone()
    made.view(raw.dtype)[slots] = raw
    return made


def touched_words(weights: Tensor, positions: Tensor, new: Tensor, each: int) -> Words:
    """Return the words that change with the weights.

    Args:
        weights: the whole tensor before the change, in any memory format.
        positions: row-major, sorted, unique, shape (nnz,).
        new: the new weights there, or their bits, shape (nnz,).
        each: weights per word.
    """
    positions = positions.to(weights.device, torch.int64)
    new = bits(new.to(weights.device))
    if each == 1 and weights.is_contiguous():
        return Words(positions, bits(gather(weights.reshape(-1), positions)), new)
    places, which = torch.unique_consecutive(positions // each, return_inverse=True)
    old = words_at(weights, places, each)
    return Words(places, old, words_with(which * each + positions % each, new, places.numel(), each, old))
