"""Run a function in several processes that form a gloo group, as torchrun would, without importing torch in each."""

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_LONGEST = 600  # seconds; a process that waits for another for ever is a failure
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["torch._dynamo", "tests.rst.distributed.sharded_models"]
)  # imported once, for all processes


def run(world: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returns in each of `world` processes, by rank. Raises with the first traceback."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(rank, world, folder, work, arguments) for rank in range(world)]
        processes = [_FORKED.Process(target=_process, args=job, daemon=True) for job in jobs]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_LONGEST)
        alive = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
        outcomes = [_read(Path(folder) / f"{rank}.pickle") for rank in range(world)]
    if failed := [text for result, text in outcomes if text]:
        raise AssertionError("\n".join(failed))
    assert not alive, f"ranks {alive} still ran after {_LONGEST} s"
    return [result for result, _ in outcomes]


def _process(rank: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    result = text = None
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        result = work(*arguments)
        dist.destroy_process_group()
    except BaseException:
        text = f"rank {rank}:\n{traceback.format_exc()}"
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps((result, text)))


def _read(path: Path) -> tuple[Any, str | None]:
    outcome: tuple[Any, str | None] = pickle.loads(path.read_bytes()) if path.exists() else (None, None)
    return outcome
