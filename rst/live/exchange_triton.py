"""A swap on a GPU, in one launch for all tensors of an element width: check, save the old elements, and write.

The kernel writes whatever it finds, and reports whether it found the expected elements. If it did not, the saved
elements are written back. The host waits once, for this answer.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rst.live.patch import EVERYTHING, Patch
from rst.live.swap_version import CountedSwap
from rst.numerics.blocks_triton import WORD
from rst.numerics.tensor_table import TensorTable

_BLOCK = 1024
_OLD, _NEW = 2, 3  # columns of the table
_MISMATCHED, _RAN = 0, 1  # of the answer


class _Part(NamedTuple):
    """The tensors of one element width and device.

    Attributes:
        table: one row per tensor: the addresses of its memory, of the positions to exchange (0 for all), and of the
            elements without and with the delta, and the offset of its elements in the saved ones.
        words: the total number of elements.
        dtype: the integer dtype of their width.
        answer: int32 of shape (2,): the last exchange that found unexpected elements, and the last that ran.
    """

    table: TensorTable
    words: int
    dtype: torch.dtype
    answer: Tensor


class Exchange:
    """Exchange the elements of all patches, or of none."""

    def __init__(self, patches: Sequence[Patch]) -> None:
        """Build the tables. Call `can_exchange` first."""
        self._patches = patches
        kinds: defaultdict[tuple[int, torch.device], list[Patch]] = defaultdict(list)
        for patch in patches:
            kinds[patch.live.tensor.element_size(), patch.live.tensor.device].append(patch)
        self._parts = [_part(own, device) for (_, device), own in kinds.items()]
        self._count = 0
        self._kept: list[Tensor] | None = None
        self._counted: CountedSwap | None = None

    def is_of(self, patches: Sequence[Patch]) -> bool:
        """Return whether it exchanges these patches."""
        return len(self._patches) == len(patches) and all(map(lambda a, b: a is b, self._patches, patches))

    def run(self, which: Literal["old", "new"]) -> bool:
        """Write these elements, and return whether the others were there. Call `keep` or `put_back` afterwards."""
        self._count += 1
        self._kept = [torch.empty(part.words, dtype=part.dtype, device=part.answer.device) for part in self._parts]
        self._counted = CountedSwap((patch.live.tensor, patch.swap_version) for patch in self._patches)
        self._launch(_NEW if which == "new" else _OLD, back=False)
        self._counted.done()
        answers = torch.cat([part.answer for part in self._parts]).tolist()  # the host waits here
        return self._count not in answers[_MISMATCHED::2]

    def keep(self) -> None:
        """Keep what was written."""
        self._kept = None

    def put_back(self) -> bool:
        """Write back what a `run` has replaced so far; return False if it was to be kept."""
        if self._kept is None:
            return False
        self._launch(_OLD, back=True)
        if self._counted is not None:
            self._counted.undone()
        self._kept = None
        return True

    def _launch(self, which: int, *, back: bool) -> None:
        assert self._kept is not None
        for part, kept in zip(self._parts, self._kept, strict=True):
            if part.table.blocks:
                with torch.cuda.device_of(kept):
                    exchange[(part.table.blocks,)](
                        part.table.rows,
                        part.table.row_of_block,
                        kept,
                        part.answer,
                        self._count,
                        which,
                        WORD=WORD[kept.element_size()],
                        BLOCK=_BLOCK,
                        BACK=back,
                    )


def can_exchange(patch: Patch) -> bool:
    """Return whether a kernel can address the elements, which it cannot in a whole tensor in another memory order."""
    return all(part.is_contiguous() for part in _tensors(patch))


def _part(patches: Sequence[Patch], device: torch.device) -> _Part:
    tensors = [_tensors(patch) for patch in patches]
    addresses = [[part.data_ptr() for part in parts] for parts in tensors]
    sizes = [parts[_NEW].numel() for parts in tensors]
    firsts = [0, *accumulate(sizes)]
    table = TensorTable.build([*zip(*addresses, strict=True), firsts[:-1]], sizes, _BLOCK, device)
    answer = torch.zeros(2, dtype=torch.int32, device=device)
    return _Part(table, firsts[-1], tensors[0][_NEW].dtype, answer)


def _tensors(patch: Patch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return memory, positions (none for all), old and new elements as tensors, also of numpy arrays on the CPU."""
    everything = patch.positions is EVERYTHING
    positions = torch.empty(0, dtype=torch.int64) if everything else torch.as_tensor(patch.positions)
    return torch.as_tensor(patch.memory), positions, torch.as_tensor(patch.old), torch.as_tensor(patch.new)


@triton.jit(do_not_specialize=["count", "which"])
def exchange(
    rows,
    row_of_block,
    kept,
    answer,
    count,
    which,
    WORD: tl.constexpr,
    BLOCK: tl.constexpr,
    BACK: tl.constexpr,
):
    """Exchange one block of the elements of one tensor."""
    program = tl.program_id(0)
    row = rows + tl.load(row_of_block + program) * 7
    start = (program - tl.load(row + 6)) * BLOCK
    places = start + tl.arange(0, BLOCK)
    there = places < tl.load(row + 5)
    positions_at = tl.load(row + 1)  # an empty tensor has no elements
    positions = places
    if positions_at != 0:
        positions = tl.load(positions_at.to(tl.pointer_type(tl.int64)) + places, mask=there, other=0)
    elements = tl.load(row).to(tl.pointer_type(WORD)) + positions
    keep = kept + tl.load(row + 4) + places
    if BACK:
        if tl.load(answer + 1) == count:
            tl.store(elements, tl.load(keep, mask=there, other=0), mask=there)
    else:
        wanted = tl.load(row + which).to(tl.pointer_type(WORD)) + places
        expected = tl.load(row + 5 - which).to(tl.pointer_type(WORD)) + places
        found = tl.load(elements, mask=there, other=0)
        tl.store(keep, found, mask=there)
        tl.store(elements, tl.load(wanted, mask=there, other=0), mask=there)
        tl.store(answer + 1, count)
        differs = (found != tl.load(expected, mask=there, other=0)).to(tl.int32)
        if tl.sum(differs, 0) > 0:
            tl.store(answer, count)
