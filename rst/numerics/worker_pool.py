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

    def without_gradients(item: Item) -> Result:
        with torch.no_grad():  # a setting of each thread
            return function(item)

    workers = min(torch.get_num_threads(), len(items))
    if workers <= 1:
        return [without_gradients(item) for item in items]
    return list(_pool(workers, os.getpid()).map(without_gradients, items))


def deal(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Divide items into a few shares a core, for work that keeps its buffers: fresh memory costs more than the work."""
    shares = min(2 * torch.get_num_threads(), len(items))
    return [items[start::shares] for start in range(shares)]


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork."""
    return ThreadPoolExecutor(workers, thread_name_prefix="rst")
