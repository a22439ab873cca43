"""`edgelm` in a process of its own, and a small HTTP client that adds and hides nothing.

Each is forked from a process that has imported what a server needs: that is six times the rest of a start.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import TracebackType
from typing import Any

from edgelm.cli.main import main
from edgelm.testing import tiny_model_path

TINY = str(tiny_model_path())
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([
    "edgelm.cli.main", "edgelm.cli.serve", "edgelm.loading", "edgelm.server.process",
    "edgelm.cli.chat", "edgelm.cli.terminal", "edgelm.testing",
    "onnxruntime", "uvicorn.lifespan.on", "uvicorn.loops.asyncio",  # else half the time of each server's start
])  # fmt: skip
SLOW = """
import time
from edgelm.decoding.sampling import Sampler
sample = Sampler.sample
Sampler.sample = lambda *arguments: (time.sleep(0.02), sample(*arguments))[1]
"""
# No token before a file is there, whatever else the processor does; each that is begun adds a point to another file.
GATED = """
import pathlib, time
from edgelm.decoding.sampling import Sampler
sample, gate, begun = Sampler.sample, pathlib.Path({gate!r}), {begun!r}
def wait_and_sample(*arguments):
    with open(begun, "a") as file:
        file.write(".")
    while not gate.exists():
        time.sleep(0.01)
    return sample(*arguments)
Sampler.sample = wait_and_sample
"""
SHORT_LIMITS = """
from edgelm.server import options
limits = options.RequestLimits(header_seconds=1, body_seconds=1, write_stall_seconds=1, request_seconds=1.5)
create = options.ServerOptions.__init__
options.ServerOptions.__init__ = lambda self, **values: create(self, **{**values, "limits": limits})
"""


@dataclass
class Reply:
    """One response."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def events(self) -> list[Any]:
        """The data of each server-sent event: JSON, or the text where it is none."""
        lines = re.findall(r"^data: (.*)$", self.data.decode(), re.MULTILINE)
        return [json.loads(line) if line.startswith("{") else line for line in lines]

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.data.splitlines()]


@dataclass
class EdgelmServer:
    """Run `edgelm serve` with these arguments; use it in a `with` block.

    prelude: what a test needs of a server: a model that takes its time, shorter limits.
    """

    arguments: tuple[str, ...] = (TINY,)
    prelude: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> EdgelmServer:
        reader, writer = os.pipe()
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.environment
        arguments = ("serve", "--port", "0", *self.arguments)
        target = (self.prelude, arguments, environment, DupFd(writer))
        self.process = _forks.Process(target=_run, args=target, daemon=True)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        os.close(writer)
        self.log: list[str] = []
        self._stderr = open(reader, encoding="utf-8")
        for line in self._stderr:
            self.log.append(line)
            match = re.search(r"Listening at (http://(\S+):(\d+)) ", line)
            if match:
                self.url, self.host, self.port = match[1], match[2].strip("[]"), int(match[3])
                break
        else:
            raise AssertionError("".join(self.log))
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop(signal.SIGKILL)

    def _read_log(self) -> None:
        with self._stderr:
            self.log.extend(self._stderr)

    def send_signal(self, signal_number: int) -> None:
        if self.process.exitcode is None:
            os.kill(self.pid, signal_number)

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        self.send_signal(signal_number)
        self.process.join(timeout=30)
        assert self.process.exitcode is not None, "The server does not end."
        self._reader.join(timeout=10)
        return self.process.exitcode

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Send one request; a body that is no bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, body: Any = None, **headers: str) -> Reply:
        return self.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def open(self) -> socket.socket:
        """Connect, and leave the rest to the caller."""
        return socket.create_connection((self.host, self.port), timeout=20)

    def send(self, data: bytes) -> socket.socket:
        """Connect and send these bytes."""
        connection = self.open()
        connection.sendall(data)
        return connection

    def post_bytes(self, path: str, body: Any) -> bytes:
        """Return the bytes of a request with a JSON body."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Length: {len(data)}\r\n\r\n"
        return head.encode() + data

    def metric(self, name: str) -> float:
        """Return one figure of /metrics, labels and all."""
        text = self.get("/metrics").data.decode()
        match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(match[1]) if match else 0.0

    def holds(self, client: tuple[str, int]) -> bool:
        """Tell whether the process has its end of a client's connection still: the system gives it an inode then."""
        ends = f":{self.port:04X}", f":{client[1]:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, *_, inode = line.split()[:10]
            if local.endswith(ends[0]) and remote.endswith(ends[1]):
                return inode != "0"
        return False

    @property
    def memory(self) -> int:
        """The resident memory of the process, in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _run(prelude: str, arguments: tuple[str, ...], environment: dict[str, str], stderr: Any) -> None:
    """Be the server: what the process that this one was forked from knows of its own environment is not the test's."""
    descriptor = stderr.detach()
    os.dup2(descriptor, 2)
    # The one before may be of a file, whose place in it click asks for.
    sys.stderr = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    _call(prelude, arguments, environment)


def _call(prelude: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    exec(prelude, {})
    main(arguments, prog_name="edgelm")


def fork_on_terminal(prelude: str, arguments: tuple[str, ...], terminal: int) -> multiprocessing.process.BaseProcess:
    """Call `edgelm` as the leader of a session on a terminal, in this environment."""
    target = (prelude, arguments, dict(os.environ), DupFd(terminal))
    process = _forks.Process(target=_run_on_terminal, args=target, daemon=True)
    process.start()
    return process


def _run_on_terminal(prelude: str, arguments: tuple[str, ...], environment: dict[str, str], terminal: Any) -> None:
    os.login_tty(terminal.detach())
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(i, "w", buffering=1, encoding=encoding, closefd=False) for i in (1, 2))
    _call(prelude, arguments, environment)


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes, or cuts."""
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data
