"""The words of a process' block of a tensor; the first process assembles words that span several blocks.

A block consists of runs of the whole tensor's memory: one run for whole rows, otherwise one per row or part of a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rst.shards.blocks import Block
from rst.sync.hashing import MASK, PLACE, hash_all, hash_at
from rst.sync.words import Words, whole_words, words_with


@dataclass(frozen=True)
class BlockWords:
    """The places of a tensor's words in a block of it.

    Attributes:
        block: the block, which is not empty.
        each: weights per word.
    """

    block: Block
    each: int

    def hash_inside(self, seed: int, part: Tensor) -> int:
        """Hash the words that lie in the block, at their places in the tensor; `part` holds its weights, shape (n,)."""
        starts, length = self._runs()
        rows, heads, hashed = part.reshape(-1, length), -starts % self.each, 0
        for head in sorted(set(heads.tolist())):
            chosen = (heads == head).nonzero().squeeze(1)
            inside = rows if len(rows) == 1 else rows[chosen.to(part.device)]
            count = max(length - head, 0) // self.each
            words = whole_words(inside[:, head : head + count * self.each].reshape(-1), self.each)
            first = (starts[chosen] + head) // self.each
            if len(rows) == 1:
                hashed += hash_all(seed + int(first) * PLACE & MASK, words)
            else:
                hashed += hash_at(seed, (first[:, None] + torch.arange(count)).reshape(-1), words)
        return hashed

    def edges(self) -> Tensor:
        """Return the sorted positions in the block, int64, of the weights whose words lie only partly in it."""
        starts, length = self._runs()
        heads = (-starts % self.each).clamp(max=length)
        tails = heads + (length - heads) // self.each * self.each
        within = torch.arange(self.each)
        slots = torch.cat([within.expand(len(starts), -1), tails[:, None] + within], 1)
        ends = torch.cat([heads[:, None].expand(-1, self.each), torch.full((len(starts), self.each), length)], 1)
        return (slots + torch.arange(len(starts))[:, None] * length)[slots < ends]

    def touched(self, part: Tensor, positions: Tensor, new: Tensor) -> Words:
        """Return the words in the block that change with the weights; see `touched_words`.

        Args:
            part: the block's weights before, shape (n,).
            positions: in the block, sorted, shape (nnz,).
            new: the weights there afterwards.
        """
        _, length = self._runs()
        within = self.block.to_global(positions) % self.each
        begin = positions - within  # of the word
        there = (positions % length >= within) & (begin % length + self.each <= length)
        begins, which = torch.unique_consecutive(begin[there], return_inverse=True)
        slots = torch.arange(self.each, device=part.device)
        old = whole_words(part[begins[:, None] + slots].reshape(-1), self.each)
        changed = words_with(which * self.each + within[there], new[there], len(begins), self.each, old)
        return Words(self.block.to_global(begins) // self.each, old, changed)

    def _runs(self) -> tuple[Tensor, int]:
        """Return the start of each run of the block in the tensor, and the common length."""
        length = 1
        for size, whole in zip(reversed(self.block.size), reversed(self.block.shape), strict=True):
            length *= size
            if size != whole:
                break
        return self.block.to_global(torch.arange(0, self.block.numel, length)), length
