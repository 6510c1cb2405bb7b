"""w0 comes over in chunks: the bits of the eager projection, each copy and launch waiting for what it needs alone."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rst.numerics.exactness import bit_equal
from rst.training import streamed_projection
from rst.training.projection_eager import project_eager
from rst.training.streamed_projection import StreamedProjection
from tests.rst.training.test_projection import any_weights
from tests.strategies import FLOAT_DTYPES


class Elsewhere(Tensor):
    """A tensor that says it is on another device."""

    device = property(lambda self: torch.device("meta"))  # type: ignore[assignment]


def elsewhere(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Elsewhere)


def test_the_bits_are_those_of_the_eager_projection() -> None:
    pairs = [any_weights(dtype, size) for dtype in FLOAT_DTYPES for size in (700, 1, 0, 33)]
    wanted = [tuned.clone() for _, tuned in pairs]
    project_eager([(tuned, base) for tuned, (base, _) in zip(wanted, pairs, strict=True)], 1e-3)
    project = StreamedProjection(project_eager, chunk_bytes=256)
    for copy in (project, pickle.loads(pickle.dumps(project))):
        found = [tuned.clone() for _, tuned in pairs]
        copy(((tuned, elsewhere(base)) for tuned, (base, _) in zip(found, pairs, strict=True)), 1e-3)
        assert all(map(bit_equal, found, wanted))


def test_gaps_in_memory_and_origins_that_are_there() -> None:
    tuned, origin = torch.ones(6), torch.zeros(6)
    other = torch.ones(5)
    StreamedProjection(project_eager, chunk_bytes=64)(
        [(tuned[::2], elsewhere(origin[::2]).as_subclass(Tensor)), (other, torch.zeros(5))], 1.0
    )
    assert tuned.tolist() == [0, 1, 0, 1, 0, 1]
    assert not other.any()


class Streams:
    """Stands in for `torch.cuda`: notes who waits for what."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.now = "main"
        self.events = 0

    def Stream(self) -> "Stream":
        return Stream(self, "side")

    def current_stream(self, device: torch.device) -> "Stream":
        return Stream(self, self.now)

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        self.now = stream.name
        yield
        self.now = "main"


class Stream:
    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name

    def wait_stream(self, other: "Stream") -> None:
        self.streams.log.append((self.name, "waits for", other.name))

    def wait_event(self, event: str) -> None:
        self.streams.log.append((self.name, "waits for", event))

    def record_event(self) -> str:
        self.streams.events += 1
        event = f"event {self.streams.events}"
        self.streams.log.append((self.name, "records", event))
        return event


def test_a_chunk_is_copied_while_the_one_before_is_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams()
    monkeypatch.setattr(streamed_projection, "get_device_module", lambda device: streams)

    def project(pairs: Any, threshold: object) -> None:
        assert [weight.numel() for weight, _ in pairs] == [16]
        streams.log.append((streams.now, "projects"))

    project_in_chunks = StreamedProjection(project, chunk_bytes=64)
    project_in_chunks([(torch.ones(48), elsewhere(torch.zeros(48)))], 1.0)
    assert streams.log == [
        ("side", "waits for", "main"),  # which had the memory before
        ("side", "records", "event 1"),
        ("main", "waits for", "event 1"),
        ("main", "projects"),
        ("main", "records", "event 2"),
        ("side", "records", "event 3"),  # copies to the other buffer at once
        ("main", "waits for", "event 3"),
        ("main", "projects"),
        ("main", "records", "event 4"),
        ("side", "waits for", "event 2"),  # the first buffer has been read
        ("side", "records", "event 5"),
        ("main", "waits for", "event 5"),
        ("main", "projects"),
        ("main", "records", "event 6"),
    ]
    before = len(streams.log)
    project_in_chunks([(torch.ones(16), elsewhere(torch.zeros(16)))], 1.0)
    assert streams.log[before] == ("side", "waits for", "event 4")


def test_the_host_waits_for_nothing_and_devices_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """On pretended CUDA tensors: to mix devices, or to ask for a value, is an error."""
    monkeypatch.setattr(streamed_projection, "get_device_module", lambda device: Streams())
    with FakeTensorMode():
        pairs = [
            (torch.ones(40, 3, device="cuda"), torch.zeros(40, 3)),
            (torch.ones((), device="cuda"), torch.zeros(())),
        ]
        StreamedProjection(project_eager, chunk_bytes=128)(pairs, 0.5)
