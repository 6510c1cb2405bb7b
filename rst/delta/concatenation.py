"""Many changes laid end to end as one, so that what is done to all of them takes a few operations, not a few each."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from rst.delta.parameter_delta import Op, ParameterDelta

# torch splits an operation on this many entries over threads, and waits for the slowest. On a busy machine that took
# 100 ms instead of 0.05.
_MOST_TOGETHER = (1 << 15) - 1


def batches(parameters: Mapping[str, ParameterDelta]) -> Iterator[dict[str, ParameterDelta]]:
    """Group changes that can be joined: of one device, dtype and operation, few enough for one thread."""
    open_batches: dict[tuple[torch.device, torch.dtype, Op], dict[str, ParameterDelta]] = {}
    sizes: Counter[tuple[torch.device, torch.dtype, Op]] = Counter()
    for name, change in parameters.items():
        kind = (change.indices.device, change.dtype, change.op)
        if sizes[kind] + change.nnz > _MOST_TOGETHER and sizes[kind]:
            yield open_batches.pop(kind)
            sizes[kind] = 0
        open_batches.setdefault(kind, {})[name] = change
        sizes[kind] += change.nnz
    yield from open_batches.values()


def concatenate_changes(changes: Sequence[ParameterDelta]) -> ParameterDelta:
    """Express changes of one kind as the change of one parameter, made of all of theirs laid end to end.

    Positions are int64, so all the parameters together must have fewer than 2^63 weights.
    """
    starts = [0, *accumulate(change.numel for change in changes)]
    indices = [change.indices for change in changes]
    exact_indices = [change.exact_indices for change in changes]
    nothing = torch.empty(0, dtype=torch.int64, device=indices[0].device)
    return ParameterDelta(
        indices=concatenate_tensors([nothing, *indices]) + repeat_each(starts[:-1], indices, nothing.device),
        values=concatenate_tensors([change.values for change in changes]),
        shape=(starts[-1],),
        dtype=changes[0].dtype,
        exact_indices=concatenate_tensors([nothing, *exact_indices])
        + repeat_each(starts[:-1], exact_indices, nothing.device),
        exact_values=concatenate_tensors([change.overlay for change in changes]),
        op=changes[0].op,
    )


def concatenate_tensors(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate on the device of the first part; empty parts may lie on any."""
    return torch.cat([parts[0], *(part for part in parts[1:] if part.numel())])


def repeat_each(numbers: Sequence[int], parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Repeat each number as often as its part has entries. Shape (entries of all parts,), int64."""
    counts = [part.numel() for part in parts]
    repeated = np.repeat(np.array(numbers, dtype=np.int64), counts)  # torch.repeat_interleave starts threads for this
    return torch.from_numpy(repeated).to(device)
