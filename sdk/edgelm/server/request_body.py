"""The body of a request: read within bounds of size and time, and parsed within bounds of nesting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request

from edgelm.files.regular_file import finite_json, has_more_values
from edgelm.server.api_error import ApiError, client_left
from edgelm.server.options import RequestLimits
from edgelm.server.schema import Schema, check

# A client that sends too much reads the refusal only after it has sent all; up to this much is taken and thrown away.
_DRAINED_BYTES = 16 << 20
# Checking a megabyte takes 0.2 s: too long for the event loop.
_LARGE_BYTES = 1 << 15
# A prompt of token ids may be as long as a context; a body of a megabyte holds some 160,000. Each value is an object of
# Python's, lists the dearest of them.
_MAX_VALUES = 5 << 15
_CLOSE = {"Connection": "close"}


async def read_json(
    request: Request,
    limits: RequestLimits,
    schema: Schema,
    in_thread: Callable[..., Awaitable[dict[str, Any]]] = asyncio.to_thread,
) -> dict[str, Any]:
    """Read a JSON object that fits a schema; its fields that are null are left out.

    in_thread: calls what takes too long for the event loop.

    Raises:
        ApiError: 413 for a body that is too large, 408 for one that takes too long, 415 for one that is compressed,
            400 for what is no JSON object or does not fit.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "A compressed body is not taken; send it as it is.", headers=_CLOSE)
    try:
        async with asyncio.timeout(limits.body_seconds):
            body = await _read(request, limits.body_bytes)
    except TimeoutError:
        raise ApiError(408, f"The body took more than {limits.body_seconds:g} s.", headers=_CLOSE) from None
    except ClientDisconnect:
        raise client_left() from None
    if len(body) > _LARGE_BYTES:
        return await in_thread(_checked, body, limits.json_nesting, schema)
    return _checked(body, limits.json_nesting, schema)


def _checked(body: bytes, nesting: int, schema: Schema) -> dict[str, Any]:
    value = _parse(body, nesting)
    check(value, schema)
    return {name: item for name, item in value.items() if item is not None}


async def _read(request: Request, most: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    expects = "expect" in request.headers
    too_large = ApiError(
        413,
        f"The body has more than {most} bytes. Send fewer or shorter texts at once.",
        code="body_too_large",
        headers=_CLOSE,
    )
    if announced.isdigit() and int(announced) > (most if expects else _DRAINED_BYTES):
        raise too_large
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts.append(part)
        elif size > _DRAINED_BYTES:
            break
    if size > most:
        raise too_large
    return b"".join(parts)


def _parse(body: bytes, nesting: int) -> dict[str, Any]:
    try:
        text = body.decode("utf-8")
        if has_more_values(text, _MAX_VALUES):
            raise ApiError(400, f"The body has more than {_MAX_VALUES} values.")
        value = finite_json(text)
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not UTF-8.") from None
    except RecursionError:
        raise _too_deep(nesting) from None
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body is not a JSON object.")
    level: list[Any] = [value]
    for _ in range(nesting):
        level = [
            item for box in level for item in (box.values() if isinstance(box, dict) else box)
            if isinstance(item, (dict, list))
        ]  # fmt: skip
        if not level:
            return value
    raise _too_deep(nesting)


def _too_deep(nesting: int) -> ApiError:
    return ApiError(400, f"The body is nested deeper than {nesting} levels.")
