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


@pytest.mark.parametrize(("characters", "returned"), [(200_000, [()]), (2_000, [])])
def test_what_a_long_text_took_goes_back_behind_its_answer(
    characters: int, returned: list[tuple[()]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[tuple[()]] = []
    monkeypatch.setattr("edgelm.server.app.return_freed_memory", lambda *arguments: given_back.append(arguments))
    app = ServerApp(ModelPool((str(tiny_model_path()),), options := ServerOptions()), options)
    body = json.dumps({"prompt": "a" * characters, "model": "no such model"}).encode()
    address = ("127.0.0.1", 8080)
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions",
        "query_string": b"", "root_path": "", "headers": [(b"host", b"127.0.0.1:8080")], "server": address,
        "client": None, "scheme": "http",
    }  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 404
    assert given_back == returned
