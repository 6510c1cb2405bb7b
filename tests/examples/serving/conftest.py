"""A SqueezeNet, some adapters of it on disk, and a server on a free port."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

from examples.serving.bank import DeltaBank  # noqa: E402
from examples.serving.demo import write_adapters  # noqa: E402
from examples.serving.scheduler import Scheduler  # noqa: E402
from examples.serving.server import create_app  # noqa: E402
from rst import SparseDelta  # noqa: E402

NAMES = [f"domain-{index}" for index in range(6)]


def small_network() -> nn.Module:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    model: nn.Module = squeezenet1_1(weights=None, num_classes=10)
    return model.eval()


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six adapters; not to be changed."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapters(small_network(), folder, NAMES, density=0.002)
    return folder


@pytest.fixture
def base() -> nn.Module:
    return small_network()


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def expected(adapters: Path, images: Tensor) -> dict[str, Tensor]:
    """What each adapter alone gives."""
    outputs = {}
    for name in NAMES:
        model = small_network()
        SparseDelta.load(adapters / name / "delta.safetensors").apply(model)
        with torch.inference_mode():
            outputs[name] = model(images)
    assert len({tuple(output.flatten().tolist()) for output in outputs.values()}) == len(NAMES)
    return outputs


@contextmanager
def serving(model: nn.Module, folder: Path, max_bytes: int, **limits: Any) -> Iterator[tuple[httpx.Client, Scheduler]]:
    """A real server in a thread, and a client of it."""
    scheduler = Scheduler(model, DeltaBank(model, folder, max_bytes))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(scheduler, **limits), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_for(lambda: server.started)
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
                yield client, scheduler
        finally:
            server.should_exit = True
            thread.join()


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "timed out"
        time.sleep(0.01)
