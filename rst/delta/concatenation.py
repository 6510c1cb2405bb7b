"""Many changes concatenated into one, so that work on all of them takes a few operations instead of a few for each.

On the CPU, numpy does this work: torch splits an operation on this many entries over threads and waits for the
slowest one, which took 100 ms instead of 0.05 on a busy machine. Numpy's arrays and tensors are indexed and compared
in the same way, so code for `Numbers` works on any device.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rst.delta.parameter_delta import Op, ParameterDelta
from rst.numerics.exactness import bits, from_ordered_keys, ordered_keys

Numbers = Any  # integers: a numpy array on the CPU, a tensor elsewhere
MOST_AT_ONCE = (1 << 15) - 1  # entries that torch leaves to one thread
_MOST_TOGETHER = 1 << 20  # entries, which take some megabytes for each of their arrays
_Kind = tuple[torch.device, torch.dtype, Op, torch.dtype]


def batches(parameters: Mapping[str, ParameterDelta]) -> Iterator[dict[str, ParameterDelta]]:
    """Group changes that can be joined: about a million entries of one device, dtype, operation and position dtype."""
    open_batches: dict[_Kind, dict[str, ParameterDelta]] = {}
    sizes: Counter[_Kind] = Counter()
    for name, change in parameters.items():
        kind, entries = (change.indices.device, change.dtype, change.op, change.indices.dtype), change.nnz
        if sizes[kind] + entries > _MOST_TOGETHER and sizes[kind]:
            yield open_batches.pop(kind)
            sizes[kind] = 0
        open_batches.setdefault(kind, {})[name] = change
        sizes[kind] += entries
    yield from open_batches.values()


@dataclass(frozen=True)
class JoinedChanges:
    """Changes of one kind, with each of their arrays concatenated.

    Attributes:
        op: the meaning of the values, the same for all changes.
        sizes: the number of weights of each parameter.
        counts: the number of entries of each change.
        indices: the positions of the entries, each in its own parameter, shape (sum of counts,).
        values: the values of the entries, shape (sum of counts,).
        exact_counts: the number of entries of each change that have absolute values.
        exact_indices: the positions of these entries, shape (sum of exact_counts,).
        exact_values: their absolute values, shape (sum of exact_counts,).
    """

    op: Op
    sizes: Sequence[int]
    counts: Sequence[int]
    indices: Tensor
    values: Tensor
    exact_counts: Sequence[int]
    exact_indices: Tensor
    exact_values: Tensor

    @classmethod
    def of(cls, changes: Sequence[ParameterDelta]) -> "JoinedChanges":
        """Join the changes of a batch."""
        overlaid = [change for change in changes if change.exact_indices.numel()]
        first = changes[0]
        return cls(
            op=first.op,
            sizes=[change.numel for change in changes],
            counts=[change.indices.numel() for change in changes],
            indices=end_to_end([change.indices for change in changes]),
            values=end_to_end([change.values for change in changes]),
            exact_counts=[change.exact_indices.numel() for change in changes],
            exact_indices=end_to_end([change.exact_indices for change in overlaid] or [first.exact_indices]),
            exact_values=end_to_end([change.overlay for change in overlaid] or [first.overlay]),
        )

    def to(self, device: torch.device) -> "JoinedChanges":
        """Copy to a device."""
        return replace(
            self,
            indices=self.indices.to(device),
            values=self.values.to(device),
            exact_indices=self.exact_indices.to(device),
            exact_values=self.exact_values.to(device),
        )

    def indices_of_64_bits(self) -> Numbers:
        """Return the positions as 64-bit integers, which index arrays."""
        found = numbers(self.indices)
        return found.astype(np.int64) if isinstance(found, np.ndarray) else found.long()

    def overlaid(self) -> tuple[Numbers, bool]:
        """Return which entries have absolute values, and whether all positions of absolute values are entries'.

        All parameters together must have fewer than 2^63 weights.
        """
        if not self.exact_indices.numel() or not self.indices.numel():
            return numbers(self.exact_indices), not self.exact_indices.numel()
        starts = np.array([0, *accumulate(self.sizes)][:-1], dtype=np.int64)
        shifted: list[Numbers] = [
            positions.numpy() + shift
            if positions.device.type == "cpu"
            else positions + torch.from_numpy(shift).to(positions.device)
            for positions, shift in (  # torch.repeat_interleave starts threads for this
                (self.indices, np.repeat(starts, self.counts)),
                (self.exact_indices, np.repeat(starts, self.exact_counts)),
            )
        ]
        places, wanted = shifted
        found = (
            np.searchsorted(places, wanted) if isinstance(places, np.ndarray) else torch.searchsorted(places, wanted)
        )
        slots: Numbers = found.clip(max=len(places) - 1)
        return slots, bool((places[slots] == wanted).all())

    def tuned_values(self, origin: Tensor) -> Tensor:
        """Compute wt at the positions from `origin`, w0 there. Shape (entries of all,)."""
        if self.op == "replace":
            return self.values
        at_once = MOST_AT_ONCE if origin.device.type == "cpu" else max(len(origin), 1)
        pairs = zip(torch.split(origin, at_once), torch.split(self.values, at_once), strict=True)
        if self.op == "step":
            return torch.cat([from_ordered_keys(ordered_keys(one) + step, origin.dtype) for one, step in pairs])
        tuned = torch.empty_like(origin)
        for out, (one, residual) in zip(torch.split(tuned, at_once), pairs, strict=True):
            torch.add(one, residual, out=out)
        if self.exact_indices.numel():
            numbers(bits(tuned))[self.overlaid()[0]] = numbers(bits(self.exact_values))
        return tuned


def numbers(tensor: Tensor) -> Numbers:
    """View a tensor of integers as the `Numbers` that are computed with."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def end_to_end(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate 1-D tensors of one dtype and device, as a view if they already lie end to end, as in a file."""
    parts = [part for part in parts if part.numel()] or parts[:1]
    first = parts[0]
    if len(parts) == 1:
        return first
    total, room = sum(part.numel() for part in parts), first.untyped_storage().nbytes() // first.element_size()
    lie_so = all(one.data_ptr() + one.nbytes == other.data_ptr() for one, other in pairwise(parts))
    if lie_so and first.storage_offset() + total <= room and all(part.is_contiguous() for part in parts):
        return first.as_strided((total,), (1,))
    if first.device.type != "cpu":
        return torch.cat(list(parts))
    raw = [part.contiguous().view(torch.uint8).numpy() for part in parts]  # numpy joins many arrays in less time
    return torch.from_numpy(np.concatenate(raw)).view(first.dtype)
