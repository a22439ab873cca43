"""The application as ASGI calls it, without a server around it."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.types import Message

from edgelm.server.app import ServerApp
from edgelm.server.model_pool import ModelPool
from edgelm.server.options import ServerOptions
from edgelm.testing import tiny_model_path


def asked(app: ServerApp, method: str, body: bytes = b"", *, origin: bytes | None = None) -> Message:
    """Return how the answer to a request begins."""
    headers = [(b"host", b"127.0.0.1:8080"), *([] if origin is None else [(b"origin", origin)])]
    scope = {
        "type": "http", "method": method, "path": "/v1/completions", "raw_path": b"/v1/completions",
        "query_string": b"", "root_path": "", "headers": headers, "server": ("127.0.0.1", 8080), "client": None,
        "scheme": "http",
    }  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]


@pytest.mark.parametrize(("characters", "returned"), [(200_000, [()]), (2_000, [])])
def test_what_a_long_text_took_goes_back_behind_its_answer(
    characters: int, returned: list[tuple[()]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[tuple[()]] = []
    monkeypatch.setattr("edgelm.server.app.return_freed_memory", lambda *arguments: given_back.append(arguments))
    app = ServerApp(ModelPool((str(tiny_model_path()),), options := ServerOptions()), options)
    body = json.dumps({"prompt": "a" * characters, "model": "no such model"}).encode()
    assert asked(app, "POST", body)["status"] == 404
    assert given_back == returned


def test_a_page_of_another_site_may_read_that_the_server_stops() -> None:
    origin = b"http://localhost:3000"
    options = ServerOptions(cors_origins=(origin.decode(),))
    app = ServerApp(ModelPool((str(tiny_model_path()),), options), options)
    app.draining = True
    told = [
        asked(app, method, origin=origin) for method in ("OPTIONS", "POST")
    ]  # the browser's question, and the page's
    assert [answer["status"] for answer in told] == [204, 503]
    assert [dict(answer["headers"])[b"access-control-allow-origin"] for answer in told] == [origin, origin]
