"""What a server is asked for at each step; here a stand-in that writes it down."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from rst import RSTError
from rst.interop.vllm_server import VLLMServer
from rst.sync import ChainError, Publisher
from tests.refusal import refused


class StandIn(ThreadingHTTPServer):
    """Takes every request; `answers` has other answers than success, by verb."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, StandIn)
        verb = self.path[1:]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((verb, body))
        code, answer = self.server.answers.get(verb.partition("?")[0], (200, {"success": True}))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    weights = {"w": torch.ones(4)}
    publisher = Publisher(weights, tmp_path / "chain")
    for _ in range(2):
        weights["w"] += 1
        publisher.publish()
    return tmp_path / "chain"


def url_of(server: StandIn) -> str:
    return f"http://127.0.0.1:{server.server_port}/"


def test_a_server_pauses_goes_to_the_step_forgets_its_cache_and_resumes(stand_in: StandIn, chain: Path) -> None:
    server = VLLMServer(url_of(stand_in), chain)
    assert server.update() == 2
    update = [
        ("start_weight_update", {}),
        ("update_weights", {"update_info": {"step": 2}}),
        ("finish_weight_update", {"weight_version": "2"}),
        ("reset_prefix_cache?reset_running_requests=False", {}),
        ("resume", {}),
    ]
    begin = [("pause?mode=wait", {}), ("init_weight_transfer_engine", {"init_info": {"store": str(chain)}})]
    assert stand_in.asked == begin + update
    stand_in.asked.clear()
    assert server.update(1) == 1
    assert [verb for verb, _ in stand_in.asked][:2] == ["pause?mode=wait", "start_weight_update"]
    assert ("update_weights", {"update_info": {"step": 1}}) in stand_in.asked


@pytest.mark.parametrize(
    ("verb", "answer", "said"),
    [
        ("update_weights", (500, {"error": "no anchor"}), ["update_weights", "500", "no anchor"]),
        ("pause", (404, {}), ["pause", "404", "VLLM_SERVER_DEV_MODE=1"]),
        ("reset_prefix_cache", (200, {"success": False}), ["prefixes"]),
    ],
)
def test_a_server_that_refuses_is_not_resumed(
    stand_in: StandIn, chain: Path, verb: str, answer: tuple[int, dict[str, Any]], said: list[str]
) -> None:
    stand_in.answers[verb] = answer
    with refused(RSTError, *said) as caught:
        VLLMServer(url_of(stand_in), chain).update()
    assert caught.value.file == url_of(stand_in).rstrip("/")
    assert "resume" not in [asked for asked, _ in stand_in.asked]


def test_without_a_chain_or_a_server_it_says_so(stand_in: StandIn, chain: Path, tmp_path: Path) -> None:
    with pytest.raises(ChainError):
        VLLMServer(url_of(stand_in), tmp_path / "none").update()
    assert not stand_in.asked
    stand_in.server_close()
    with refused(RSTError, "pause"):
        VLLMServer(url_of(stand_in), chain, timeout=5).update()
