"""The ASGI application: every request passes the guard, is counted, and goes to its endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from edgelm.memory.malloc import return_freed_memory
from edgelm.server import guard
from edgelm.server.api_error import ApiError, as_api_error
from edgelm.server.endpoint import Call, Endpoint, caller_of
from edgelm.server.metrics import Metrics
from edgelm.server.model_pool import ModelPool
from edgelm.server.options import ServerOptions
from edgelm.server.other_paths import nothing_at
from edgelm.server.request_body import read_json
from edgelm.server.routes import ROUTES
from edgelm.server.sse import JsonAnswer
from edgelm.server.thread_shares import ThreadShares

logger = logging.getLogger("edgelm.server")

# Asked for by the page each time it is opened, and by probes every few seconds: too many lines to read.
_ASKED_OFTEN = ("/page/", "/health", "/metrics")
# Bytes of a body. A thread that makes tokens of a megabyte takes 100 MB, which the allocator would keep: after a larger
# body, free memory is returned to the system.
_KEPT = 1 << 17
_SAFETY_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class ServerApp:
    """Answer requests with the models of `pool`.

    `draining`: set by who stops the server; from then on new requests are refused, and running ones go on.
    """

    def __init__(self, pool: ModelPool, options: ServerOptions) -> None:
        self._pool, self._options = pool, options
        self._threads = ThreadShares()
        self.metrics = Metrics()
        self.draining = False
        self._router = Starlette(
            routes=[Route(row.path, self._handler(row), methods=[row.method]) for row in ROUTES],
            exception_handlers={HTTPException: _http_error},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self._pool.running():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's event, as ASGI defines it."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        scope = _in_origin_form(scope)
        started = time.monotonic()
        status, received = 500, 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.running += 1
        try:
            await self._guarded(scope, counting, noting)
        finally:
            self.metrics.running -= 1
            seconds = time.monotonic() - started
            route = scope.get("route")
            self.metrics.count_request(route.path if isinstance(route, Route) else "other", status, seconds)
            # Escaped, so that a path can neither add lines to the log nor send control codes to a terminal.
            path = repr(scope["path"][:100])[1:-1]
            level = logging.DEBUG if path.startswith(_ASKED_OFTEN) and status < 400 else logging.INFO
            logger.log(level, "%s %s %d %.3f s", scope["method"], path, status, seconds)
            if received > _KEPT:
                with contextlib.suppress(RuntimeError):  # no thread starts now: behind the next one, then
                    await asyncio.to_thread(return_freed_memory)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            guard.check_framing(headers)
            host = guard.check_host(headers, scope["server"], self._options)
            origin = guard.check_origin(headers, host, self._options)
        except ApiError as error:
            if error.status == 403:  # a probe or a proxy shows nobody what it was answered
                logger.info("%s", error)
            await _error_response(scope["path"], error)(scope, receive, send)
            return
        if origin is not None and scope["method"] == "OPTIONS":
            await Response(status_code=204, headers=guard.preflight_headers(origin, headers))(scope, receive, send)
            return
        if origin is not None:
            send = _adding(guard.cors_headers(origin), send)
        if self.draining:
            await _error_response(scope["path"], guard.refuse_while_draining())(scope, receive, send)
        else:
            await self._router(scope, receive, send)

    def _handler(self, row: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            try:
                response = await self._answer(row, request)
            except Exception as error:
                refusal = as_api_error(error)
                if refusal.status >= 500 and not isinstance(error, ApiError):
                    logger.exception("%s %s failed", request.method, row.path)
                return _error_response(row.path, refusal)
            for name, value in _SAFETY_HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return handle

    async def _answer(self, row: Endpoint, request: Request) -> Response:
        key = ""
        if not row.public:
            guard.check_site(request.headers)
            key = guard.check_key(request.headers, self._options)
        body = {}
        if row.body is not None:
            in_thread = partial(self._threads.run, caller_of(request, key))
            body = await read_json(request, self._options.limits, row.body, in_thread)
        return await row.answer(
            Call(
                request=request,
                body=body,
                options=self._options,
                pool=self._pool,
                metrics=self.metrics,
                key=key,
                threads=self._threads,
            )
        )


def _in_origin_form(scope: Scope) -> Scope:
    """Turn a request for a whole URL, which programs send to a proxy, into one for its path; the URL's host takes the
    place of the Host header. Source: RFC 9112, section 3.2.2.
    """
    scheme, separator, rest = scope["raw_path"].partition(b"://")
    if not separator or scheme.lower() != b"http":
        return scope
    authority, _, path = rest.partition(b"/")
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {
        **scope,
        "path": unquote("/" + path.decode("ascii")),
        "raw_path": b"/" + path,
        "headers": [(b"host", authority), *headers],
    }


def _error_response(path: str, error: ApiError) -> Response:
    return JsonAnswer(error.body(path), status_code=error.status, headers=error.headers | _SAFETY_HEADERS)


async def _http_error(request: Request, error: Exception) -> Response:
    """Say in our own words what the router refuses: a path that is not there, a method that it has not."""
    assert isinstance(error, HTTPException)
    words = {
        404: nothing_at(request.url.path),
        405: f"{request.method} is not for this path, which takes {(error.headers or {}).get('Allow')}.",
    }
    return _error_response(
        request.url.path,
        ApiError(
            error.status_code,
            words.get(error.status_code, error.detail),
            code="not_found" if error.status_code == 404 else None,
            headers=error.headers,
        ),
    )


def _adding(more: dict[str, str], send: Send) -> Send:
    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(more)
        await send(message)

    return adding
