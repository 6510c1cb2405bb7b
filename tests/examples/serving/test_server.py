"""The server over HTTP: concurrent requests get what each adapter alone gives, bit for bit."""

import copy
import json
import random
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from typer.testing import CliRunner

from examples.serving import load_test
from examples.serving.__main__ import load_base
from rst import SparseDelta
from tests.examples.serving.conftest import NAMES, serving


def predict(client: httpx.Client, name: str, images: Tensor) -> Tensor:
    response = client.post(f"/predict/{name}", content=save({"inputs": images}))
    assert response.status_code == 200, response.text
    return load(response.content)["outputs"]


def test_concurrent_requests_equal_the_single_adapters_bit_for_bit(
    base: nn.Module, adapters: Path, images: Tensor, expected: dict[str, Tensor]
) -> None:
    before = copy.deepcopy(base.state_dict())
    deltas = [SparseDelta.load(adapters / name / "delta.safetensors") for name in NAMES]
    room = 2 * max(delta.prepare(base).nbytes for delta in deltas)
    asked = NAMES * 20
    random.Random(0).shuffle(asked)
    with serving(base, adapters, max_bytes=room) as (client, _):
        assert client.get("/adapters").json() == NAMES
        with ThreadPoolExecutor(8) as pool:
            outputs = list(pool.map(lambda name: predict(client, name, images), asked))
        for name, output in zip(asked, outputs, strict=True):
            assert torch.equal(output, expected[name])
        bank, latency = client.get("/bank").json(), client.get("/latency").json()
    assert bank["bytes"] <= bank["max_bytes"] == room
    assert bank["evictions"] > 0
    assert bank["hits"] + bank["loads"] == bank["swaps"] <= len(asked)
    assert latency["count"] == len(asked) == sum(bucket["count"] for bucket in latency["histogram"])
    assert 0 < latency["percentiles_ms"]["p50"] <= latency["percentiles_ms"]["p99.9"]
    for name, tensor in base.state_dict().items():
        assert tensor.numpy().tobytes() == before[name].numpy().tobytes(), name


def test_bad_requests_get_a_status_and_a_sentence(
    base: nn.Module, adapters: Path, images: Tensor, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "adapters"
    shutil.copytree(adapters, folder)
    shutil.copytree(adapters / NAMES[0], tmp_path / "outside")
    damaged = folder / NAMES[0] / "delta.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    body = save({"inputs": images})
    with serving(base, folder, max_bytes=2**30) as (client, scheduler):
        for name, content, status, sentence in [
            ("none", body, 404, "no adapter 'none'"),
            ("..%2Foutside", body, 404, "Not Found"),
            ("..%5Coutside", body, 404, "no adapter"),
            ("%2E%2E", body, 404, ""),
            (NAMES[0], body, 422, "delta.safetensors"),
            (NAMES[1], b"no tensors", 400, "safetensors"),
            (NAMES[1], save({"images": images}), 400, "inputs"),
            (NAMES[1], save({"inputs": images[:, :2].contiguous()}), 400, "channels"),
        ]:
            response = client.post(f"/predict/{name}", content=content)
            assert response.status_code == status, (name, response.text)
            assert sentence in response.json()["detail"]
        assert torch.equal(predict(client, NAMES[1], images), expected[NAMES[1]])
        scheduler.bank.use.max_bytes = 100
        response = client.post(f"/predict/{NAMES[2]}", content=body)
        assert response.status_code == 507
        assert "may hold 100" in response.json()["detail"]


def header_of(shape: list[int]) -> bytes:
    header = json.dumps({"inputs": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize("shape", [[0, 2**62], [2**63, 0], [2**64 - 1, 0], [2**40, 2**40, 0], [0] * 100])
def test_a_shape_that_no_tensor_has_is_refused(base: nn.Module, adapters: Path, shape: list[int]) -> None:
    with serving(base, adapters, max_bytes=2**30) as (client, _):
        assert client.post(f"/predict/{NAMES[0]}", content=header_of(shape)).status_code == 400


def test_a_name_longer_than_file_names_is_unknown(base: nn.Module, adapters: Path, images: Tensor) -> None:
    with serving(base, adapters, max_bytes=2**30) as (client, _):
        response = client.post(f"/predict/{'x' * 5000}", content=save({"inputs": images}))
    assert response.status_code == 404
    assert len(response.json()["detail"]) < 200


@pytest.mark.parametrize("claimed", [True, False])
def test_a_body_above_the_limit_is_refused(base: nn.Module, adapters: Path, images: Tensor, claimed: bool) -> None:
    body = save({"inputs": images})
    with serving(base, adapters, 2**30, max_body=len(body)) as (client, _):
        assert torch.equal(predict(client, NAMES[0], images), predict(client, NAMES[0], images))
        response = client.post(f"/predict/{NAMES[0]}", content=body + b"x" if claimed else iter([body, b"x"]))
    assert response.status_code == 413
    assert f"{len(body):,}" in response.json()["detail"]


def read_to_the_end(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    return b"".join(iter(lambda: connection.recv(4096), b""))  # until the server closes it


def test_a_refused_client_that_still_sends_hears_why(base: nn.Module, adapters: Path) -> None:
    """Bytes that nobody reads would reset the connection, and the answer with it."""
    with serving(base, adapters, 2**30, max_body=100) as (client, _), socket.socket() as sender:
        sender.connect((client.base_url.host, client.base_url.port))
        sender.sendall(b"POST /predict/x HTTP/1.1\r\nHost: x\r\nContent-Length: 150\r\n\r\n" + bytes(120))
        sender.settimeout(0.2)
        with pytest.raises(TimeoutError):  # above the limit already, and yet no answer that it could miss
            sender.recv(1)
        sender.sendall(bytes(30))
        answer = read_to_the_end(sender)
    assert b" 413 " in answer.splitlines()[0]


def test_a_body_that_does_not_end_is_given_up(base: nn.Module, adapters: Path) -> None:
    with serving(base, adapters, 2**30, max_body=100) as (client, _), socket.socket() as sender:
        sender.connect((client.base_url.host, client.base_url.port))
        sender.sendall(b"POST /predict/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(220))
        answer = read_to_the_end(sender)
    assert b" 413 " in answer.splitlines()[0]


def test_a_body_that_does_not_arrive_is_given_up(base: nn.Module, adapters: Path) -> None:
    with serving(base, adapters, 2**30, read_seconds=0.1) as (client, _), socket.socket() as slow:
        slow.connect((client.base_url.host, client.base_url.port))
        slow.sendall(b"POST /predict/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nfew")
        answer = read_to_the_end(slow)
    assert b" 408 " in answer.splitlines()[0]
    assert b"0.1 s" in answer


def test_a_replaced_adapter_is_noticed_while_it_is_the_active_one(
    base: nn.Module, adapters: Path, images: Tensor, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    shutil.copytree(adapters, tmp_path, dirs_exist_ok=True)
    with serving(base, tmp_path, max_bytes=2**30) as (client, _):
        assert torch.equal(predict(client, NAMES[0], images), expected[NAMES[0]])
        (tmp_path / NAMES[1] / "delta.safetensors").replace(tmp_path / NAMES[0] / "delta.safetensors")
        assert torch.equal(predict(client, NAMES[0], images), expected[NAMES[1]])


def test_load_test_reports_and_draws(base: nn.Module, adapters: Path, tmp_path: Path) -> None:
    with serving(base, adapters, max_bytes=2**30) as (client, _):
        predict(client, NAMES[0], torch.zeros(1, 3, 32, 32))
        arguments = ["--url", str(client.base_url), "--requests", "40", "--clients", "4", "--shape", "1,3,32,32"]
        app = load_test.typer.Typer()
        app.command()(load_test.main)
        result = CliRunner().invoke(app, [*arguments, "--figure", str(tmp_path / "new" / "latency.png")])
    assert result.exit_code == 0, result.output
    assert "requests a second" in result.output
    assert (tmp_path / "new" / "latency.png").stat().st_size > 1000


def test_base_by_name() -> None:
    model = load_base("examples.serving.demo:base_model")
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_689_512
    for wrong in ("nowhere:model", "examples.serving.demo:nothing", "torch", "builtins:dict"):
        with pytest.raises(load_test.typer.BadParameter, match=wrong):
            load_base(wrong)
