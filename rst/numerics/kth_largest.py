"""The exact k-th largest of very many numbers in O(N), without sorting, which App. M's top-r % needs at every step.

A sample brackets the result. One pass counts the numbers above the bracket and collects the few inside it, among which
the k-th is found exactly. If the bracket misses, its failing end is opened and the pass repeated.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from rst.numerics.worker_pool import on_all_cores

Item = TypeVar("Item")
Floats = np.ndarray[tuple[int], np.dtype[np.floating[Any]]]
Positions = np.ndarray[tuple[int], np.dtype[np.signedinteger[Any]]]

_SAMPLE = 1 << 18
# Standard errors of the sample on either side: fewer than one bracket in ten thousand misses.
_ERRORS = 4.0
# Numbers within the bracket that are counted one by one rather than collected: in half precision many are equal.
_FEW = 8


@dataclass(frozen=True)
class KthLargest:
    """The k-th largest number: its value, the count of strictly larger ones, and its positions.

    `ties` holds, for the first items, the positions of numbers equal to `value`, in order: `k - above` in all.
    """

    value: float
    above: int
    ties: Sequence[Positions]


def kth_largest(numbers: Callable[[Item, int], Floats], items: Sequence[Item], k: int, total: int) -> KthLargest:
    """Find the k-th largest of all numbers.

    Args:
        numbers: returns every `step`-th number of an item from the first on, `step` being its second argument.
            Non-negative, without NaN, the same each time, in one dtype for all items; called from several threads.
        items: the parts that the numbers are divided into.
        k: rank, at least 1 and at most `total`.
        total: count of all numbers.
    """
    stride = -(-total // _SAMPLE)
    sample = np.concatenate(on_all_cores(lambda item: numbers(item, stride), items))
    low, high = _bracket(np.sort(sample), k / total)
    few = np.unique(sample[(sample >= low) & (sample <= high)]).tolist()
    if len(few) <= _FEW:
        counts = on_all_cores(lambda item: _counts(numbers(item, 1), few), items)
        for value, above, equal in zip(few, *np.sum(counts, axis=0).tolist(), strict=True):
            if above < k <= above + equal:
                ties = (np.flatnonzero(numbers(item, 1) == value) for item in items)
                return KthLargest(value, above, _first(ties, k - above))
    while True:
        found = on_all_cores(lambda item: _look(numbers(item, 1), low, high), items)  # noqa: B023  (called at once)
        above = sum(count for count, _, _ in found)
        inside = np.concatenate([values for _, _, values in found])
        if above >= k:
            high = np.inf
        elif above + inside.size < k:
            low = 0.0
        else:
            place = inside.size - (k - above)
            value = inside[np.argpartition(inside, place)[place]]
            above += int(np.count_nonzero(inside > value))
            ties = (positions[values == value] for _, positions, values in found)
            return KthLargest(float(value), above, _first(ties, k - above))


def _counts(numbers: Floats, values: Sequence[float]) -> tuple[list[int], list[int]]:
    """Count the numbers above each value, and those equal to it."""
    above = [int(np.count_nonzero(numbers > value)) for value in values]
    return above, [int(np.count_nonzero(numbers == value)) for value in values]


def _first(ties: Iterator[Positions], wanted: int) -> list[Positions]:
    """Return the first positions of each item, until there are as many as wanted; the others are not looked for."""
    chosen = []
    while wanted:
        chosen.append(next(ties)[:wanted])
        wanted -= chosen[-1].size
    return chosen


def _bracket(sample: Floats, share: float) -> tuple[float, float]:
    """Return two numbers of a sorted sample that enclose the one that a `share` of all numbers reaches or exceeds."""
    error = _ERRORS * (share * (1 - share) * sample.size) ** 0.5 + 2
    middle = sample.size * (1 - share)
    low = sample[max(int(middle - error), 0)] if middle > error else 0.0
    high = sample[int(middle + error)] if middle + error < sample.size else np.inf
    return float(low), float(high)


def _look(numbers: Floats, low: float, high: float) -> tuple[int, Positions, Floats]:
    """Count the numbers above `high`, and return those in `[low, high]` with their positions."""
    positions = np.flatnonzero(numbers >= low)
    values = numbers[positions]
    inside = values <= high
    return int(values.size - np.count_nonzero(inside)), positions[inside], values[inside]
