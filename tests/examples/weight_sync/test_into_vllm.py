"""The whole way with the real programs, where vLLM is installed (`make engines`): a Trainer, a server, HTTP."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; make engines sets up an environment that has it")

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow  # two servers start, a minute each on two cores
def test_ten_steps_of_a_trainer_end_in_a_server_that_answers_as_one_newly_loaded() -> None:
    command = [sys.executable, "-m", "examples.weight_sync.into_vllm", "--steps", "10"]
    settings = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # other processes have the cores too
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    lines = done.stdout.splitlines()
    assert [int(line.split()[1]) for line in lines if line.startswith("step ")] == list(range(1, 11))
    assert "27 log-probabilities identical" in done.stdout
