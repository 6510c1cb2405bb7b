"""The HTTP interface: tensors in and out as safetensors, errors as status codes, counters and latencies.

POST /predict/{adapter}   safetensors with "inputs" -> safetensors with "outputs"
GET  /adapters            names
GET  /latency             percentiles and histogram, in milliseconds
GET  /bank                what is in memory, hits, loads, evictions, swaps
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request, Response
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from examples.serving.bank import AdapterTooLargeError, UnknownAdapterError
from examples.serving.scheduler import ClosedError, ForwardError, Scheduler
from rst import RSTError

MAX_BODY = 64 * 2**20
READ_SECONDS = 30.0
PERCENTS = (50.0, 90.0, 99.0, 99.9)
_LAST = {"Connection": "close"}  # what is left of the body is not read
_STATUS: dict[type[Exception], int] = {
    UnknownAdapterError: 404,
    ForwardError: 400,
    RSTError: 422,
    ClosedError: 503,
    AdapterTooLargeError: 507,
}


def create_app(
    scheduler: Scheduler,
    device: torch.device | str = "cpu",
    max_body: int = MAX_BODY,
    read_seconds: float = READ_SECONDS,
) -> FastAPI:
    """Return the application; it closes the scheduler when the server shuts down.

    Args:
        scheduler: runs the requests.
        device: where the model is.
        max_body: bytes of one request; more is answered 413.
        read_seconds: for the whole body of one request to arrive; a slower one is answered 408.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(scheduler.close)

    app = FastAPI(title="One base, many domains", lifespan=lifespan)

    @app.post("/predict/{adapter}")
    async def predict(adapter: str, request: Request) -> Response:
        try:
            body = await asyncio.wait_for(_body(request, max_body), read_seconds)
        except asyncio.TimeoutError as error:  # TimeoutError itself from Python 3.11 on
            raise HTTPException(408, f"the body took more than {read_seconds:g} s", _LAST) from error
        inputs = _inputs(body)
        try:
            outputs = await asyncio.wrap_future(scheduler.submit(adapter, inputs.to(device)))
        except tuple(_STATUS) as error:
            raise HTTPException(_status(error), str(error)) from error
        return Response(save({"outputs": outputs.cpu().contiguous()}), media_type="application/octet-stream")

    @app.get("/adapters")
    def adapters() -> list[str]:
        return scheduler.bank.names()

    @app.get("/latency")
    def latency() -> dict[str, Any]:
        counts = scheduler.latency.counts()
        percentiles = scheduler.latency.percentiles(*PERCENTS)
        return {
            "count": sum(count for _, count in counts),
            "percentiles_ms": {f"p{percent:g}": 1000 * seconds for percent, seconds in percentiles.items()},
            "histogram": [{"up_to_ms": 1000 * edge, "count": count} for edge, count in counts],
        }

    @app.get("/bank")
    def bank() -> dict[str, int]:
        return {**asdict(scheduler.bank.use), "swaps": scheduler.swaps}

    return app


async def _body(request: Request, most: int) -> bytes:
    """All of the body, as it arrives: a length that a header claims, or leaves out, is no bound.

    As much again as is allowed is read and dropped before the refusal: a connection that closes on bytes it has not
    read is reset, and the client loses the answer.
    """
    body, arrived = bytearray(), 0
    async for part in request.stream():
        arrived += len(part)
        if arrived <= most:
            body += part
        elif arrived > 2 * most:
            break
    if arrived > most:
        raise HTTPException(413, f"the body may have {most:,} bytes", _LAST)
    return bytes(body)


def _inputs(body: bytes) -> Tensor:
    try:
        return load(body)["inputs"]
    except (SafetensorError, KeyError, ValueError, OverflowError, RuntimeError, TypeError) as error:
        raise HTTPException(400, f'the body must be safetensors with one tensor "inputs" ({error})') from error


def _status(error: Exception) -> int:
    return next(status for kind, status in _STATUS.items() if isinstance(error, kind))
