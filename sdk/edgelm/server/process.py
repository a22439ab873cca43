"""The server's process: its socket, its event loop, and how signals end it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn

from edgelm.errors import ConfigError
from edgelm.runtime.onnx_runtime import require_provider
from edgelm.server.app import ServerApp
from edgelm.server.connection import BoundedConnection
from edgelm.server.model_pool import ModelPool
from edgelm.server.options import RequestLimits, ServerOptions

logger = logging.getLogger("edgelm.server")

# Longer than proxies keep an idle connection (nginx 60 s, Caddy 120 s). If the server closed it first, a request that
# the proxy is just sending would fail with 502.
_KEEP_ALIVE_SECONDS = 150
# asyncio accepts so many connections, each an open file, before it handles the first one; the system lets more wait.
_ACCEPTED_AT_ONCE = 16
_WAITING_OUTSIDE = 2048
# For IPv4 and IPv6, the address that means all of a machine's, and one that is nobody's (RFC 5737, RFC 3849).
_NOWHERE = {"0.0.0.0": "192.0.2.1", "::": "2001:db8::1"}


def serve(
    models: tuple[str, ...],
    options: ServerOptions,
    listening: Callable[[str, Sequence[str]], None] = lambda _url, _names: None,
) -> int | None:
    """Serve until a signal comes; return its number.

    The first SIGTERM, SIGINT or SIGHUP lets running requests end and refuses new ones with 503; the second stops at
    once.

    listening: called once it takes requests, with the server's URL and the names that they may have for a model.

    Raises:
        ConfigError: the address or port cannot be had.
        ModelNotFoundError, PackageError: as ModelPool.
        ProviderError: ONNX Runtime is not installed, or has not the provider.
    """
    require_provider(options.runtime.provider)
    pool = ModelPool(models, options)
    app = ServerApp(pool, options)
    limits = _within_open_files(options.limits)
    with _listen(options) as listener:
        config = uvicorn.Config(
            app,
            http=functools.partial(BoundedConnection, limits),  # type: ignore[arg-type]
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections + 1,  # when no connection can give way, the newest gets a 503
            backlog=_ACCEPTED_AT_ONCE,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it says in several lines what we say in one
        server = _Server(config, app, lambda: listening(_url(listener), tuple(pool.folders())))
        server.run(sockets=[listener])
    return server.signal


class _Server(uvicorn.Server):
    """uvicorn's server, but that it goes on listening while it drains: new requests are refused, not cut off."""

    def __init__(self, config: uvicorn.Config, app: ServerApp, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._app, self._listening = app, listening
        self.signal: int | None = None
        self._is_drain_told = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGHUP too, which log rotation and closed terminals send, unless it is ignored as under nohup."""
        with super().capture_signals(), _on_hangup(self.handle_exit):
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_WAITING_OUTSIDE)
        self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.signal = sig
        if self._app.draining:
            self.force_exit = True
        self._app.draining = True

    async def on_tick(self, counter: int) -> bool:
        done = await super().on_tick(counter)
        running = self._app.metrics.running
        if self._app.draining and running and not self._is_drain_told:
            self._is_drain_told = True  # else the command would seem to hang
            logger.info("Stopping when the running requests have ended (%d). Ctrl-C again stops at once.", running)
        return done or self.force_exit or (self._app.draining and not running)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(sockets)


@contextlib.contextmanager
def _on_hangup(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGHUP)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _within_open_files(limits: RequestLimits) -> RequestLimits:
    """Return the limits with no more connections than half of the files that this process may have open."""
    if sys.platform == "win32":
        return limits
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most == resource.RLIM_INFINITY:
        return limits
    return dataclasses.replace(limits, connections=min(limits.connections, max(1, most // 2)))


def _listen(options: ServerOptions) -> socket.socket:
    host, port = options.host, options.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"There is no address {host!r} to listen at: {error}.") from error
    try:
        if sys.platform != "win32":  # where the option lets two programs listen at one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"Port {port} is taken. Choose another: --port {port + 1}, or 0 for any free one."
            ) from error
        other = "--host: it is no address of this machine" if error.errno == errno.EADDRNOTAVAIL else "--port"
        raise ConfigError(f"Cannot listen at {host}, port {port}: {error.strerror}. Choose another {other}.") from error
    return listener


def _url(listener: socket.socket) -> str:
    """Return a URL of the server: where it listens at all addresses, one that other machines reach."""
    host, port = listener.getsockname()[:2]
    if host in _NOWHERE:
        with socket.socket(listener.family, socket.SOCK_DGRAM) as towards, contextlib.suppress(OSError):
            towards.connect((_NOWHERE[host], port))  # sends nothing, but chooses the address to send from
            host = towards.getsockname()[0]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
