"""Digests where their threads are not: in a process forked from one that has used them."""

import os
import time
from pathlib import Path

import pytest
import torch

from rst import SparseDelta, export

_PATIENCE = 60.0  # seconds; what waits for threads that are not there waits for ever


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_saves_and_loads(tmp_path: Path) -> None:
    base = {"w": torch.zeros(3_000_000)}
    delta = export(base, {"w": torch.ones(3_000_000)})  # hashes on all cores
    delta.save(tmp_path / "parent.safetensors")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # torch's own threads do not survive a fork either
        delta.save(tmp_path / "child.safetensors")
        os._exit(0 if SparseDelta.load(tmp_path / "child.safetensors").nnz == 3_000_000 else 1)
    end = time.monotonic() + _PATIENCE
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.05)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)
