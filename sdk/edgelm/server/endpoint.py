"""Endpoint: one row of the server's routes; Call: one request to it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgelm.server.api_error import ApiError
from edgelm.server.loaded_model import LoadedModel
from edgelm.server.metrics import Metrics
from edgelm.server.model_pool import ModelPool
from edgelm.server.options import ServerOptions
from edgelm.server.schema import ANY_OBJECT, Schema
from edgelm.server.thread_shares import Parameters, Result, ThreadShares


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request: its body, checked and without nulls, and what the server answers it with.

    key: the one that it was let in with, or that it gives to a server that has none.
    """

    request: Request
    body: dict[str, Any]
    options: ServerOptions
    pool: ModelPool
    metrics: Metrics
    key: str = field(default="", repr=False)
    threads: ThreadShares = field(default_factory=ThreadShares)
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long ago the request came."""
        return time.monotonic() - self.started

    @property
    def caller(self) -> str:
        """Who asks."""
        return caller_of(self.request, self.key)

    @property
    def deadline(self) -> float:
        """When the time that a request may take is over, as time.monotonic() counts."""
        return self.started + self.options.limits.request_seconds

    async def in_thread(
        self, function: Callable[Parameters, Result], *given: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """Call a function that takes too long for the event loop, in the turn of this caller."""
        return await self.threads.run(self.caller, function, *given, **named)

    def check_reading(self, param: str) -> None:
        """Refuse to go on with texts that are read beside the engine, which ends by itself only what it computes.

        Raises:
            ApiError: the time that a request may take is over.
        """
        if time.monotonic() > self.deadline:
            seconds = self.options.limits.request_seconds
            raise ApiError(400, f"These texts take more than the {seconds:g} s of a request; send fewer.", param=param)

    async def model(self, name: str | None) -> LoadedModel:
        """Return the model that the request names, loaded; its `release` is the caller's to call.

        Raises:
            ApiError: it is not here, or cannot be loaded.
        """
        return await self.pool.acquire(self.pool.resolve(name))


def caller_of(request: Request, key: str) -> str:
    """Return who asks, as far as that is known: an address, and a key where one was given."""
    return f"{request.client.host if request.client else ''} {key}"


@dataclass(frozen=True)
class Endpoint:
    """Answer one method of one path.

    body: the schema that a JSON body has to fit, None for an endpoint without one. answers: the schema of the JSON that
    comes back; None where something else does, of the media type `media`. public: answered without a key.
    """

    method: str
    path: str
    answer: Callable[[Call], Awaitable[Response]]
    summary: str
    body: Schema | None = None
    answers: Schema | None = field(default_factory=lambda: ANY_OBJECT)
    media: str = "text/plain"
    public: bool = False
