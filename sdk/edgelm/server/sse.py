"""Server-sent events and lines of JSON: how an answer travels while it is made."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgelm.server.api_error import ApiError, client_left

Result = TypeVar("Result")

KEEPALIVE = b": keepalive\n\n"
DONE = b"data: [DONE]\n\n"
# Line ends of Unicode, which JSON allows inside of a text; Python's ollama package cuts an answer into lines at them.
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def to_json(value: object) -> bytes:
    """Write a value as one line of JSON in UTF-8; half of a surrogate pair, which UTF-8 has not, is a question mark."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for end, escape in _LINE_ENDS.items():
        text = text.replace(end, escape)
    return text.encode("utf-8", "replace")


def event(value: object, name: str | None = None) -> bytes:
    """Write one event; `name` is its type, where the protocol has named events."""
    head = b"" if name is None else f"event: {name}\n".encode("ascii")
    return b"%sdata: %s\n\n" % (head, to_json(value))


def line(value: object) -> bytes:
    """Write one line of JSON."""
    return to_json(value) + b"\n"


class JsonAnswer(Response):
    """A JSON body."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Write the body."""
        return to_json(content)


class StreamAnswer(Response):
    """A body that is sent while it is made. When the client leaves, the making is cancelled.

    close: called when the response is over, however it ends.
    """

    def __init__(self, pieces: AsyncGenerator[bytes, None], close: Callable[[], None], media_type: str) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, media_type=media_type)
        del self.headers["content-length"]
        self._pieces, self._close = pieces, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces."""
        try:
            with contextlib.suppress(ApiError):  # which nobody is there to read
                await unless_disconnected(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                # Sending to a client that has left never waits: all pieces that are ready would be written before that
                # is noticed, for 10 s if it had stalled, in which no other request is read.
                await asyncio.sleep(0)
        finally:
            await self._pieces.aclose()
        await send({"type": "http.response.body", "body": b""})


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, and return its result; when the client leaves before, cancel it.

    Raises:
        ApiError: the client has left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise client_left()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
