"""The scheduler: whose turn it is, what a failure leaves behind, what closing does."""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.serving.bank import DeltaBank, UnknownAdapterError
from examples.serving.scheduler import ClosedError, ForwardError, Scheduler
from tests.examples.serving.conftest import NAMES, wait_for
from tests.messages import names


class Gated(nn.Module):
    """A model whose forward waits until it may."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, images: Tensor) -> Tensor:
        assert self.gate.wait(30)
        outputs: Tensor = self.model(images)
        return outputs


@contextmanager
def scheduling(model: nn.Module, folder: Path, turn: int = 3) -> Iterator[tuple[Gated, Scheduler]]:
    gated = Gated(model)
    scheduler = Scheduler(gated, DeltaBank(model, folder, 2**30), turn)
    try:
        yield gated, scheduler
    finally:
        gated.gate.set()
        scheduler.close()


def test_no_adapter_waits_longer_than_a_turn_of_each_other(
    base: nn.Module, adapters: Path, images: Tensor, expected: dict[str, Tensor]
) -> None:
    order: list[str] = []
    with scheduling(base, adapters) as (gated, scheduler):
        gated.gate.clear()
        asked = [NAMES[0]] * 10 + [NAMES[1]] * 4 + [NAMES[2]]
        futures = []
        for index, name in enumerate(asked):
            futures.append((name, scheduler.submit(name, images)))
            futures[-1][1].add_done_callback(lambda _, name=name: order.append(name))
            if index == 0:
                wait_for(lambda: scheduler.swaps == 1)  # the first turn has begun, with one request
        gated.gate.set()
        for name, future in futures:
            assert torch.equal(future.result(30), expected[name])
    first, second, third = NAMES[:3]
    assert order == [first] + [first] * 3 + [second] * 3 + [third] + [first] * 3 + [second] + [first] * 3
    assert scheduler.swaps == 1 + 5


def test_closing_answers_what_waits_and_leaves_the_base(base: nn.Module, adapters: Path, images: Tensor) -> None:
    before = copy.deepcopy(base.state_dict())
    with scheduling(base, adapters) as (_, scheduler):
        futures = [scheduler.submit(name, images) for name in NAMES]
    assert all(future.done() and future.exception() is None for future in futures)
    for name, tensor in base.state_dict().items():
        assert tensor.numpy().tobytes() == before[name].numpy().tobytes(), name
    with pytest.raises(ClosedError):
        scheduler.submit(NAMES[0], images)


def test_failures_are_the_callers_alone(
    base: nn.Module, adapters: Path, images: Tensor, expected: dict[str, Tensor]
) -> None:
    with scheduling(base, adapters) as (_, scheduler):
        with pytest.raises(ForwardError, match="channels"):
            scheduler.submit(NAMES[0], images[:, :2]).result(30)
        with pytest.raises(UnknownAdapterError, match=names("'none'")):
            scheduler.submit("none", images)
        assert torch.equal(scheduler.submit(NAMES[0], images).result(30), expected[NAMES[0]])
        assert scheduler.swaps == 1
    assert sum(count for _, count in scheduler.latency.counts()) == 1


def test_cancelled_requests_are_not_run(base: nn.Module, adapters: Path, images: Tensor) -> None:
    with scheduling(base, adapters) as (gated, scheduler):
        gated.gate.clear()
        running = scheduler.submit(NAMES[0], images)
        wait_for(running.running)
        given_up = scheduler.submit(NAMES[1], images)
        assert given_up.cancel()
        gated.gate.set()
        running.result(30)
    assert sum(count for _, count in scheduler.latency.counts()) == 1
