"""The examples in two processes, as accelerate starts them, which torchrun's own launcher does for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
EXAMPLES = ["train", "train_with_accelerate"]


@pytest.mark.slow
def test_two_processes_ship_the_change(tmp_path: Path) -> None:
    words = [sys.executable, "-m", *LAUNCH, "-m", "tests.examples.distributed.both_examples", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(__file__).parents[3]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bytes give all 6 tuned tensors, bit for bit") == len(EXAMPLES)
    assert done.stdout.count("2 processes, each with the whole model") == 1  # accelerate says so
    for example in EXAMPLES:
        names = sorted(path.name for path in (tmp_path / example).iterdir())
        assert names == ["base.safetensors", "delta.safetensors", "merged.safetensors"]
