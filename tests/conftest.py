"""Settings of the whole suite."""

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Speed is the business of benchmarks; a busy machine must not fail a test.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
# continuous integration: a failure is the change's, never the luck of a draw; other runs draw anew and search on
settings.register_profile("ci", deadline=None, derandomize=True)
# `make mutants`: the same examples for every mutant, and one that fails suffices
settings.register_profile(
    "mutants", deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
torch.set_num_threads(1)  # one of several workers on a small machine


def _fsync(descriptor: int) -> None:
    """No test cuts the power, and the disk is waited for in none; tests/rst/files/test_atomic.py looks at the order."""
    os.fstat(descriptor)


os.fsync = _fsync  # type: ignore[assignment]


@pytest.fixture(autouse=True, scope="module")
def _no_garbage_is_sought_in_what_is_imported() -> None:
    """Each search through torch and transformers takes a second, and `transformers.Trainer` makes one a run."""
    gc.collect()
    gc.freeze()
