"""The scheduler: one thread owns the model, switches between adapters and runs the requests of each together.

No other thread touches the weights, so no request can see half a swap, and the model needs no lock.
"""

import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from examples.serving.bank import DeltaBank
from examples.serving.latency import LatencyHistogram
from rst import PreparedDelta


class ForwardError(Exception):
    """The model refused the inputs."""


class ClosedError(Exception):
    """The scheduler takes no more requests."""


@dataclass
class Request:
    """Inputs of one caller, and where the outputs go."""

    inputs: Tensor
    outputs: "Future[Tensor]" = field(default_factory=Future)
    submitted: float = field(default_factory=time.perf_counter)


class Scheduler:
    """Requests by adapter, round robin: an adapter in great demand hands over after `turn` requests.

    A request is one forward by itself. Requests are not merged into one batch: a result would then depend, in its last
    bits, on who else asked at that moment.

    >>> scheduler = Scheduler(model, DeltaBank(model, folder, max_bytes=200_000_000))
    >>> scheduler.submit("clipart", images).result()

    Attributes:
        bank: the adapters.
        latency: from `submit` to the outputs, of the requests that succeeded.
        swaps: how often the adapter in the weights was exchanged.
    """

    def __init__(self, model: nn.Module, bank: DeltaBank, turn: int = 8) -> None:
        """Start the thread. `model` holds the base's weights, and belongs to the scheduler until `close`."""
        self.bank = bank
        self.latency = LatencyHistogram()
        self.swaps = 0
        self._model = model.eval()
        self._turn = turn
        self._waiting: OrderedDict[str, deque[Request]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._active: tuple[tuple[str, tuple[int, ...]], PreparedDelta] | None = None
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, adapter: str, inputs: Tensor) -> "Future[Tensor]":
        """Queue one forward; from any thread.

        The future raises `AdapterTooLargeError` or `RSTError` as the bank does, or `ForwardError`.

        Raises:
            UnknownAdapterError: there is no such adapter.
            ClosedError: after `close`.
        """
        self.bank.find(adapter)  # before the line, so that a wrong name costs no swap
        request = Request(inputs)
        with self._changed:
            if self._closed:
                raise ClosedError("the server is closing")
            self._waiting.setdefault(adapter, deque()).append(request)
            self._changed.notify()
        return request.outputs

    def close(self) -> None:
        """Answer what waits, end the thread, and leave the base's weights in the model, bit for bit."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (turn := self._next_turn()) is not None:
            adapter, requests = turn
            try:
                self._switch_to(adapter)
            except Exception as error:  # whatever is wrong with this adapter is its callers' to hear
                for request in requests:
                    request.outputs.set_exception(error)
            else:
                for request in requests:
                    self._run(request)
        self._deactivate()

    def _next_turn(self) -> tuple[str, list[Request]] | None:
        """Wait for the adapter whose turn it is, and take its oldest requests; None once closed and all done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            adapter, queue = self._waiting.popitem(last=False)
            taken = [queue.popleft() for _ in range(min(self._turn, len(queue)))]
            if queue:
                self._waiting[adapter] = queue  # at the end of the line
        return adapter, [request for request in taken if request.outputs.set_running_or_notify_cancel()]

    def _switch_to(self, adapter: str) -> None:
        wanted = adapter, self.bank.version(adapter)
        if self._active is not None and self._active[0] == wanted:
            return
        self._deactivate()  # first, as the bank prepares against the base
        prepared = self.bank.prepared(adapter)
        prepared.apply()
        self._active = wanted, prepared
        self.swaps += 1

    def _deactivate(self) -> None:
        if self._active is not None:
            self._active[1].remove()
        self._active = None

    def _run(self, request: Request) -> None:
        try:
            with torch.inference_mode():
                outputs = self._model(request.inputs)
        except Exception as error:
            request.outputs.set_exception(ForwardError(str(error)))
        else:
            self.latency.add(time.perf_counter() - request.submitted)
            request.outputs.set_result(outputs)
