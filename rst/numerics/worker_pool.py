"""Numpy's work in pieces, on as many threads as torch is allowed."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Elements an operation gets at a time. Small enough that a chunk with its temporaries stays in a shared cache; large
# enough that threads seldom wait for each other's turn at the interpreter between two operations.
CHUNK = 1 << 18


def on_all_cores(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Map `function`, without gradients, over `items`; results in their order."""
    workers = min(torch.get_num_threads(), len(items))
    if workers <= 1:
        with torch.no_grad():
            return [function(item) for item in items]
    return list(_pool(workers, os.getpid()).map(function, items))


def divide(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Divide items into a few shares a core, for work that keeps its buffers: fresh memory costs more than the work."""
    shares = min(2 * torch.get_num_threads(), len(items))
    return [items[start::shares] for start in range(shares)]


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork."""
    # Whether gradients are recorded is a setting of each thread: the caller's does not reach these.
    return ThreadPoolExecutor(workers, "rst", initializer=torch.set_grad_enabled, initargs=(False,))
