"""A real HTTP server on the loopback interface, which also speaks as much of the hub's protocol as edgelm needs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".onnx", ".data")


@dataclass
class LoopbackServer:
    """Serve `files` (path -> bytes), and misbehave as told."""

    files: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)  # path -> the status that it answers with
    redirects: dict[str, str] = field(default_factory=dict)  # path -> URL
    drops: dict[str, list[int]] = field(default_factory=dict)  # path -> bytes until each of the next connections breaks
    holds: dict[str, int] = field(default_factory=dict)  # path -> bytes after which it waits for `release`
    release: threading.Event = field(default_factory=threading.Event)
    knows_head: bool = True
    knows_ranges: bool = True
    shifts_ranges: bool = False  # it sends another part than the one that was asked for
    states_length: bool = True
    retry_after: dict[str, list[str]] = field(default_factory=dict)  # path -> Retry-After of the next answers, all 429
    etag: str | None = '"version-1"'
    headers_seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # of each GET and HEAD

    def __enter__(self) -> LoopbackServer:
        state = self

        class Handler(_Handler):
            server_state = state

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def ranges_asked(self, path: str) -> list[str | None]:
        """Return the Range header of each GET of `path`."""
        return [headers.get("range") for seen, headers in self.headers_seen if seen == path]

    def receive(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        """Answer a POST or a PUT; hubs take uploads (loopback_hub.py), other servers nothing."""
        return 404, {}

    def add_repository(self, repo: str, files: dict[str, bytes], *, commit: str = COMMIT, **info: Any) -> None:
        """Serve a repository of the hub; weights are LFS files, so they have a SHA-256."""
        siblings: list[dict[str, Any]] = []
        for name, content in files.items():
            self.files[f"/{repo}/resolve/{commit}/{name}"] = content
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            if name.endswith(LFS_SUFFIXES):
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        answer = {"id": repo, "sha": commit, "siblings": siblings, "tags": [], "private": False} | info
        for path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main"):
            self.files[path] = json.dumps(answer).encode()


class _Handler(BaseHTTPRequestHandler):
    server_state: LoopbackServer
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # who asked may leave, or be killed
            super().handle()

    def do_GET(self) -> None:
        state = self.server_state
        path = self.path.partition("?")[0]
        state.headers_seen.append((path, {name.lower(): value for name, value in self.headers.items()}))
        content = state.files.get(path)
        status = state.statuses.get(path, 200 if content is not None else 404)
        if path in state.redirects:
            self.send_response(302)
            self.send_header("Location", state.redirects[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if state.retry_after.get(path):
            self.send_response(429)
            self.send_header("Retry-After", state.retry_after[path].pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if status != 200 or content is None:
            self._refuse(path, status)
            return
        start, end = 0, len(content)
        asked = self.headers.get("Range")
        partial = bool(asked) and state.knows_ranges and self.headers.get("If-Range", state.etag) == state.etag
        if asked and partial:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first) + state.shifts_ranges, min(int(last) + 1, end) if last else end
        if start > len(content) or (partial and start == len(content)):
            self._refuse(path, 416)
            return
        self.send_response(206 if partial else 200)
        if state.states_length:
            self.send_header("Content-Length", str(end - start))
        else:
            self.close_connection = True
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        if state.etag:
            self.send_header("ETag", state.etag)
        if path.endswith("/"):
            self.send_header("Content-Type", "text/html")
        if state.knows_ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(path, content[start:end])

    def do_HEAD(self) -> None:
        if self.server_state.knows_head:
            self.do_GET()
        else:
            self._refuse(self.path, 405)

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, answer = self.server_state.receive(path, headers, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_POST

    def _send_body(self, path: str, body: bytes) -> None:
        state = self.server_state
        if state.drops.get(path):
            self.wfile.write(body[: state.drops[path].pop(0)])
            self.close_connection = True
            return
        if path in state.holds and not state.release.is_set():
            self.wfile.write(body[: state.holds[path]])
            self.wfile.flush()
            state.release.wait(30)
            self.close_connection = True
            return
        self.wfile.write(body)

    def _refuse(self, path: str, status: int) -> None:
        self.send_response(status)
        codes = {401: "GatedRepo", 403: "GatedRepo", 404: "RepoNotFound"}
        if status in codes:
            self.send_header("X-Error-Code", "RevisionNotFound" if "/revision/" in path else codes[status])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Keep the tests' output quiet."""
