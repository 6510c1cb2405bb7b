"""Eq. 17 on a GPU in one launch for all weights of a dtype, which also counts the kept weights.

Each program of a launch processes one block of one weight, found through a table, and counts its kept weights.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rst.numerics import kernels
from rst.numerics.blocks_triton import FLOAT, WORD, block_of, find_pair, load, store, widened
from rst.numerics.rounding import comparison_bound, wide_dtype
from rst.numerics.tensor_table import TensorTable
from rst.training.projection_eager import Pair, flat_views, project_eager

_REMEMBERED = 1024  # sets of weights; steps in the backward pass have one for each parameter


class Plan(NamedTuple):
    """A set of weights: the table, the kept count of each block, and the weights with gaps."""

    table: TensorTable
    kept: Tensor
    with_gaps: Sequence[int]


class TritonProjection:
    """Does what `project_eager` does, bit for bit. What it learns about the addresses of weights is cached."""

    def __init__(self) -> None:
        """Start without any weights."""
        self._plans: dict[Any, Plan] = {}

    @torch.no_grad()
    def __call__(self, pairs: Iterable[Pair], threshold: float | Tensor) -> Callable[[], int] | None:
        """Reset, in place, the weights with `|wt - w0| <= threshold` to w0; arguments as of `project_eager`.

        Weights on devices without kernels, and those with gaps in their memory, are left to `project_eager`.
        """
        groups: defaultdict[tuple[torch.dtype, torch.device], list[Pair]] = defaultdict(list)
        for weight, origin in pairs:
            groups[weight.dtype, weight.device].append((weight, origin))
        counts, others = [], []
        for (dtype, device), group in groups.items():
            if not kernels.run_on(device):
                others += group
                continue
            plan = self.plan(dtype, device, group)
            launch(plan, dtype, threshold)
            counts.append(plan.kept)
            others += [group[number] for number in plan.with_gaps]
        if others:
            project_eager(others, threshold)
            return None
        return lambda: sum(int(kept.sum()) for kept in counts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy without the cached plans, because a copy has other weights."""
        return TritonProjection, ()

    def plan(self, dtype: torch.dtype, device: torch.device, group: Sequence[Pair]) -> Plan:
        """Return the plan of weights and their origins, all of one dtype and device; made the first time."""
        addresses = (
            (weight.data_ptr(), origin.data_ptr(), weight.shape, weight.stride(), origin.stride())
            for weight, origin in group
        )
        key = dtype, device, *addresses
        if key not in self._plans:
            if len(self._plans) == _REMEMBERED:
                self._plans.clear()
            self._plans[key] = make_plan(dtype, device, group)
        return self._plans[key]


def make_plan(dtype: torch.dtype, device: torch.device, group: Sequence[Pair]) -> Plan:
    """Make the plan of weights and their origins, all of one dtype and device."""
    with_gaps = [number for number, pair in enumerate(group) if flat_views(*pair) is None]
    sizes = [0 if number in with_gaps else weight.numel() for number, (weight, _) in enumerate(group)]
    columns = [[weight.data_ptr() for weight, _ in group], [origin.data_ptr() for _, origin in group]]
    table = TensorTable.build(columns, sizes, block_of(dtype.itemsize), device)
    return Plan(table, torch.zeros(table.blocks, dtype=torch.int32, device=device), with_gaps)


def launch(plan: Plan, dtype: torch.dtype, threshold: float | Tensor) -> None:
    """Launch Eq. 17 over a table once, if it is not empty."""
    if not plan.table.blocks:
        return
    there = threshold.to(plan.kept.device, wide_dtype(dtype)) if isinstance(threshold, Tensor) else None
    number = 0.0 if isinstance(threshold, Tensor) else comparison_bound(threshold, dtype)
    with torch.cuda.device_of(plan.kept):
        project[(plan.table.blocks,)](
            plan.table.rows, plan.table.row_of_block, there, number, plan.kept, **constants(dtype)
        )


def constants(dtype: torch.dtype) -> dict[str, Any]:
    """Return the constants that the kernel is compiled for."""
    wide = FLOAT[wide_dtype(dtype)]
    return {"WORD": WORD[dtype.itemsize], "FLOAT": FLOAT[dtype], "WIDE": wide, "BLOCK": block_of(dtype.itemsize)}


@triton.jit
def project(
    rows,
    row_of_block,
    bound_there,
    bound: tl.float64,
    kept,
    WORD: tl.constexpr,
    FLOAT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Project one block of one weight."""
    weights, origins, _, left, full = find_pair(rows, row_of_block, WORD, BLOCK)
    if bound_there is None:
        limit = tl.full((), bound, WIDE)
    else:
        limit = tl.load(bound_there)
    if full:
        tl.store(kept + tl.program_id(0), put_back(weights, origins, limit, left, FLOAT, WIDE, BLOCK, True))
    else:
        tl.store(kept + tl.program_id(0), put_back(weights, origins, limit, left, FLOAT, WIDE, BLOCK, False))


@triton.jit
def put_back(
    weights, origins, limit, left, FLOAT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, FULL: tl.constexpr
):
    """Apply Eq. 17 to one block; return how many weights are kept."""
    offsets = tl.arange(0, BLOCK)
    weight = load(weights, offsets, left, FULL)
    origin = load(origins, offsets, left, FULL)
    change = widened(weight, FLOAT, WIDE) - widened(origin, FLOAT, WIDE)
    result = tl.where(tl.abs(change) <= limit, origin, weight)
    store(weights, offsets, left, result, FULL)
    return tl.sum((result != origin).to(tl.int32), 0)
