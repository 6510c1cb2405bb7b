"""GRPO of TRL in one process, vLLM in another, where both are installed (`make engines`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; make engines sets up an environment that has it")
pytest.importorskip("trl", reason="TRL is not installed; make engines sets up an environment that has it")

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow  # two servers start, a minute each on two cores
def test_what_grpo_trains_is_what_the_server_answers_with() -> None:
    command = [sys.executable, "-m", "examples.weight_sync.trl_with_vllm", "--steps", "4"]
    settings = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # other processes have the cores too
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    steps = [line.split() for line in done.stdout.splitlines() if line.startswith("step ")]
    assert [int(words[1]) for words in steps] == [1, 2, 3, 4]
    assert all(float(words[2].rstrip("%")) > 0 for words in steps)
    assert "27 log-probabilities identical" in done.stdout
