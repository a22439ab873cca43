"""StreamAnswer and its lines, without a server: what it sends, and when it stops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from edgelm.server.sse import StreamAnswer, line


def test_what_is_ready_is_not_all_written_to_a_client_that_has_left() -> None:
    written, closed = 0, []

    async def pieces() -> AsyncGenerator[bytes, None]:
        for _ in range(100_000):  # all of them are there: nothing is waited for
            yield b"x"

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_message: dict[str, Any]) -> None:
        nonlocal written
        written += 1

    answer = StreamAnswer(pieces(), lambda: closed.append(True), "text/plain")
    asyncio.run(answer({"type": "http"}, receive, send))

    assert written < 10
    assert closed == [True]


def test_json_is_one_line_for_who_splits_at_every_line_end_of_unicode() -> None:
    text = "one\x0b\x0c\x1c\x1d\x1e\x85two\u2028three\u2029four\r\n"
    written = line({text: text}).decode()
    assert len(written.splitlines()) == 1  # as httpx reads lines, and so the ollama package
    assert json.loads(written) == {text: text}
