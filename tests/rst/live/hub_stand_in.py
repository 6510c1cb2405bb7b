"""A hub on this machine: as much of the Hugging Face hub's HTTP interface as its client needs for files."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

Files = dict[str, bytes]


@dataclass
class Repository:
    """Branches by name, each with its files, and what was said of the commits."""

    private: bool
    branches: dict[str, Files] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    commits: list[dict[str, Any]] = field(default_factory=list)

    def files_at(self, revision: str) -> Files | None:
        """What a branch holds, by its name or by the hash of its last commit."""
        by_hash = {_commit_hash(files): files for files in self.branches.values()}
        return self.branches.get(revision, by_hash.get(revision))


@dataclass
class Hub:
    """What the server holds, and the requests it got as (method, path, token)."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub until the `with` ends."""
    hub = Hub()

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._send_file()

    def do_GET(self) -> None:
        parts = urlparse(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), unquote(parts[5]) if len(parts) > 5 else "main", "tree" in parts)
        else:
            self._send_file()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self._note()
        if parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:
            self._answer({"errors": [], "warnings": []})
        elif parts[:2] == ["api", "models"] and len(parts) == 6:
            self._change("/".join(parts[2:4]), parts[4], parts[5], body)
        else:
            self._refuse("EntryNotFound")

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        known = name in self.served.repositories
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"  # older and newer clients
        self.served.repositories.setdefault(name, Repository(private))
        self._answer({"url": f"{self.served.url}/{name}"}, status=409 if known else 200)

    def _describe(self, name: str, revision: str, as_tree: bool) -> None:
        self._note()
        if (repository := self.served.repositories.get(name)) is None:
            return self._refuse("RepoNotFound")
        if (files := repository.files_at(revision)) is None:
            return self._refuse("RevisionNotFound")
        if as_tree:  # newer clients
            entries = [(path, len(content), hashlib.sha1(content).hexdigest()) for path, content in files.items()]
            return self._answer([{"type": "file", "path": path, "size": n, "oid": oid} for path, n, oid in entries])
        siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
        return self._answer({"id": name, "sha": _commit_hash(files), "siblings": siblings})

    def _change(self, name: str, verb: str, revision: str, body: bytes) -> None:
        repository = self.served.repositories[name]
        if verb == "branch":
            known = revision in repository.branches
            repository.branches.setdefault(revision, dict(repository.branches["main"]))
            self._answer({}, status=409 if known else 200)
        elif revision not in repository.branches:
            self._refuse("RevisionNotFound")
        elif verb == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._answer({"files": modes})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            pull_request = "create_pr=1" in self.path
            if not pull_request:
                repository.branches[revision] |= files
            repository.commits.append(
                {**lines[0]["value"], "files": sorted(files), "branch": revision, "pull_request": pull_request}
            )
            oid = _commit_hash(repository.branches[revision])
            url = f"{self.served.url}/{name}/commit/{oid}"
            pull_request_url = f"{self.served.url}/{name}/discussions/1"
            self._answer({"commitUrl": url, "commitOid": oid, "pullRequestUrl": pull_request_url})

    def _send_file(self) -> None:
        owner, name, verb, revision, *path = [*self._note(), "", "", "", ""]
        repository = self.served.repositories.get(f"{owner}/{name}")
        if repository is None or verb != "resolve":
            return self._refuse("RepoNotFound")
        if repository.private and not self.headers.get("Authorization"):
            return self._refuse("RepoNotFound", status=401)
        files = repository.files_at(revision)
        if files is None:
            return self._refuse("RevisionNotFound")
        content = files.get("/".join(part for part in path if part))
        if content is None:
            return self._refuse("EntryNotFound", {"X-Repo-Commit": _commit_hash(files)})
        etag = hashlib.sha1(content).hexdigest()
        return self._answer(content, headers={"X-Repo-Commit": _commit_hash(files), "ETag": f'"{etag}"'})

    def _note(self) -> list[str]:
        path = urlparse(self.path).path
        token = self.headers.get("Authorization")
        self.served.requests.append((self.command, path, token and token.removeprefix("Bearer ")))
        return [unquote(part) for part in path.strip("/").split("/")]

    def _refuse(self, code: str, headers: dict[str, str] | None = None, status: int = 404) -> None:
        self._answer({"error": code}, status, {"X-Error-Code": code, **(headers or {})})

    def _answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _commit_hash(files: Files) -> str:
    return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()
