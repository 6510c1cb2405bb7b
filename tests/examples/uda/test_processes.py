"""Two processes on the CPU (gloo): they train one model, on halves of every batch."""

import os
import subprocess
import sys

import pytest

from tests.examples.uda.smoke_runs import tiny_cell, write_data


@pytest.mark.slow
def test_a_cell_runs_in_two_processes(tmp_path):
    write_data(tmp_path / "data")
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "tests.examples.uda.in_processes"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text()  # the same weights on both
    result = tiny_cell(tmp_path, method="cmkd+rst").result()
    assert result is not None
    assert result["processes"] == 2
    assert len(result["per_class"]) == 12  # every test image was seen, though each process saw half
