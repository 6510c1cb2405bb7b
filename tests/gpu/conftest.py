"""Tests that `make gpu` runs: on a GPU, or in a rehearsal on the CPU with Triton's interpreter."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.interpreted import interpreted_kernels


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The GPU; in a rehearsal the CPU, where kernels are interpreted."""
    if torch.cuda.is_available():
        yield torch.device("cuda")
    elif os.environ.get("RST_REHEARSE") == "1":
        with interpreted_kernels(block_bytes=256):
            yield torch.device("cpu")
    else:
        pytest.skip("no GPU; `make gpu REHEARSE=1` runs it on the CPU")


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The GPU itself, for what has no rehearsal."""
    if device.type != "cuda":
        pytest.skip("needs a GPU: has no rehearsal")
    return device
