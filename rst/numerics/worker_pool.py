"""Running numpy in pieces on as many threads as torch may use."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Elements per operation. Small enough that a chunk with its temporaries stays in a shared cache; large enough that
# threads rarely wait for the interpreter between two operations.
CHUNK = 1 << 18


def on_all_cores(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Map `function`, without gradients, over `items`; results in their order."""
    workers = min(torch.get_num_threads(), len(items))
    if workers <= 1:
        with torch.no_grad():
            return [function(item) for item in items]
    return list(_pool(workers, os.getpid()).map(function, items))


def divide(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Divide items into a few shares per core, for work that reuses its buffers: allocating costs more than it."""
    shares = min(2 * torch.get_num_threads(), len(items))
    return [items[start::shares] for start in range(shares)]


@cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Return the pool of this process: threads do not survive a fork."""
    # Gradient mode is set per thread: the caller's setting does not apply to these threads.
    return ThreadPoolExecutor(workers, "rst", initializer=torch.set_grad_enabled, initargs=(False,))
