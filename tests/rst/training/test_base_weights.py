"""Where w0 is kept."""

import signal
from pathlib import Path

import pytest
import torch

from rst.errors import ConfigError
from rst.training.base_weights import BaseWeights
from tests.refusal import refused


def test_a_mapped_copy_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as a full disk: an error and no signal
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with refused(ConfigError, "mmap", "4,000,000 bytes", file=tmp_path):
            BaseWeights({"w": torch.zeros(1_000_000)}, "mmap")
        assert BaseWeights({"w": torch.ones(100)}, "mmap")["w"].sum() == 100
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
