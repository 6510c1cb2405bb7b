"""The example in two processes, as torchrun and accelerate start it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "-m", "examples.distributed.train"],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("-m", "examples.distributed.train_with_accelerate"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_ship_the_change(launcher: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", *LAUNCHERS[launcher], "--steps", "3", "--output", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[3]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "bytes give all 6 tuned tensors, bit for bit" in done.stdout
    assert ("2 processes, each with the whole model" in done.stdout) == (launcher == "accelerate")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["base.safetensors", "delta.safetensors", "merged.safetensors"]
