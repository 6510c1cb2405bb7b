"""A vLLM server that is moved, over HTTP, to a step of a chain."""

import json
import os
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from rst.errors import RSTError
from rst.sync.chain import read_pointer
from rst.sync.store import open_store


class VLLMServer:
    """A running `vllm serve --weight-transfer-config '{"backend": "rst"}'` that follows a chain.

    >>> server = VLLMServer("http://localhost:8000", "/shared/chain")
    >>> server.update()
    17

    The server needs this package beside vLLM, access to the chain under the same name, and `VLLM_SERVER_DEV_MODE=1`,
    without which vLLM does not serve these requests.
    """

    def __init__(
        self,
        url: str,
        store: str | os.PathLike[str],
        *,
        in_flight: Literal["abort", "wait", "keep"] = "wait",
        timeout: float = 600,
    ) -> None:
        """Store the settings; nothing is sent yet.

        Args:
            url: the server's URL.
            store: the chain's folder, or its URL for fsspec.
            in_flight: how to treat requests that are being answered: vLLM's pause modes.
            timeout: timeout of each request, in seconds.
        """
        self.url = url.rstrip("/")
        self._store, self._in_flight, self._timeout = os.fspath(store), in_flight, timeout
        self._begun = False

    def update(self, step: int | None = None) -> int:
        """Pause, move all workers to a step, clear the prefix cache, and resume; return the step.

        vLLM's `/weight_info` then reports the step as the version of the weights.

        Args:
            step: a published one, before or after the server's; None for the last.

        Raises:
            ChainError: there is no chain.
            RSTError: the server cannot be reached or refuses. It stays paused, because its workers may differ, until an
                update succeeds.
        """
        goal = read_pointer(open_store(self._store)).step if step is None else step
        self._post("pause", mode=self._in_flight)
        if not self._begun:
            self._post("init_weight_transfer_engine", {"init_info": {"store": self._store}})
            self._begun = True
        self._post("start_weight_update")
        self._post("update_weights", {"update_info": {"step": goal}})
        self._post("finish_weight_update", {"weight_version": str(goal)})
        forgotten = self._post("reset_prefix_cache", reset_running_requests=self._in_flight == "keep")
        if not forgotten.get("success"):
            raise RSTError(
                "the server still caches prefixes computed with older weights, and stays paused", file=self.url
            )
        self._post("resume")
        return goal

    def _post(self, verb: str, body: dict[str, Any] | None = None, **query: object) -> dict[str, Any]:
        address = f"{self.url}/{verb}" + (f"?{urlencode(query)}" if query else "")
        request = Request(address, json.dumps(body or {}).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self._timeout) as answer:
                found: dict[str, Any] = json.loads(answer.read() or b"{}")
                return found
        except HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            advice = "; is VLLM_SERVER_DEV_MODE=1 set for it?" if error.code == 404 else ""
            raise RSTError(f"{verb}: {error.code} {said}{advice}", file=self.url) from error
        except OSError as error:
            raise RSTError(f"{verb}: {error}", file=self.url) from error
