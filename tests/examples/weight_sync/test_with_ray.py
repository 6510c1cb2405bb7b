"""Actors of Ray follow a trainer; needs `pip install ray`."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="pip install ray")


def test_every_living_sampler_has_each_step() -> None:
    run = [sys.executable, "-m", "examples.weight_sync.with_ray"]
    lines = subprocess.run(run, check=True, capture_output=True, text=True, timeout=300).stdout.splitlines()
    seen = [line.split(" in ")[1].split()[0] for line in lines if line.startswith("step")]
    assert seen == ["2", "2", "1", "1", "2", "2"]
