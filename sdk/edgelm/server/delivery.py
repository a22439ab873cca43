"""Delivery: from a checked request to its response, whole or streamed; what the generating endpoints have in common."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from starlette.responses import Response

from edgelm.completion import Chunk, Completion, ToolCall, ToolCallDelta
from edgelm.files.regular_file import finite_json
from edgelm.server.answers import Answers, Job
from edgelm.server.api_error import ApiError, as_api_error
from edgelm.server.endpoint import Call
from edgelm.server.loaded_model import LoadedModel
from edgelm.server.sse import JsonAnswer, StreamAnswer, unless_disconnected

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

logger = logging.getLogger("edgelm.server")


class Writer(Protocol):
    """Write answers in the form of one protocol."""

    @property
    def media_type(self) -> str:
        """The media type of a stream."""

    def whole(self, completions: Sequence[Completion]) -> object:
        """Return the JSON of a response that is not streamed."""

    def stream(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """Yield the response while it is made."""

    def error(self, error: ApiError) -> bytes:
        """Write an error into a stream that has begun."""


Prepare = Callable[[LoadedModel], tuple[Sequence[Job], Writer]]


async def deliver(
    call: Call,
    prepare: Prepare,
    *,
    streaming: bool,
    scoring: Callable[[LanguageModel], Iterator[bool]] | None = None,
) -> Response:
    """Answer a request: load its model, prepare its jobs, and write what they give.

    prepare: called in a thread, as it encodes texts and compiles schemas. scoring: runs the model beside the engine
    once all is prepared, and yields True after each text, so that other requests get their turn.

    Raises:
        ApiError: the model is not here, or the client has left before the answer was whole.
        EdgeLMError: what `prepare` or the engine has against the request; nothing was sent then.
    """
    served = await call.model(call.body.get("model"))
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(served)
        jobs, writer = await call.in_thread(prepare, served)
        if scoring is not None:
            await unless_disconnected(call.request.receive, _scored(served, scoring(served.model)))
        answers = Answers(served, jobs, call.caller, call.deadline, call.metrics, call.threads)
        cleanup.callback(answers.cancel)
        await call.in_thread(answers.start)
        if streaming:
            later = cleanup.pop_all()  # the response does it, at its end
            return StreamAnswer(_until_error(writer, answers), later.close, writer.media_type)
        completions = await unless_disconnected(call.request.receive, answers.completions())
        # In a thread: half a million log-probabilities take seconds, in which the event loop could read no request.
        return await call.in_thread(lambda: JsonAnswer(writer.whole(completions)))


async def _scored(served: LoadedModel, texts: Iterator[bool]) -> None:
    """Score texts in threads, each in a turn of its own; one that was begun is finished, even if the client leaves."""
    more = True
    while more:
        async with served.scoring:
            text = asyncio.ensure_future(asyncio.to_thread(next, texts, False))
            try:
                more = await asyncio.shield(text)
            finally:
                await asyncio.wait({text})


async def count_tokens(call: Call, prepare: Callable[[LanguageModel], Sequence[Job]]) -> int:
    """Return how many tokens the prompts of a request have, which is not answered.

    prepare: called in a thread, as it encodes texts.

    Raises:
        ApiError: the model is not here.
        EdgeLMError: what `prepare` has against the request.
    """
    with await call.model(call.body.get("model")) as served:
        jobs = await call.in_thread(prepare, served.model)
    return sum(len(job.prompt_ids) for job in jobs)


async def _until_error(writer: Writer, answers: Answers) -> AsyncGenerator[bytes, None]:
    """Yield what the writer writes; an error becomes the last thing that the stream says."""
    pieces = writer.stream(answers)
    try:
        async for piece in pieces:
            yield piece
    except Exception as error:
        refusal = as_api_error(error)
        if refusal.status >= 500:
            logger.exception("An answer failed")
        yield writer.error(refusal)
    finally:
        await pieces.aclose()


def calls_around_text(chunk: Chunk) -> tuple[Sequence[ToolCallDelta], Sequence[ToolCallDelta]]:
    """Return the pieces of calls that are written before a chunk's text, and those behind it.

    The rest of a call that was begun earlier is written before the text, new calls behind it.
    """
    new = list(itertools.dropwhile(lambda delta: delta.name is None, chunk.tool_calls))
    return chunk.tool_calls[: len(chunk.tool_calls) - len(new)], new


def readable(calls: Sequence[ToolCall]) -> list[tuple[ToolCall, dict[str, Any]]]:
    """Return calls with their arguments as objects.

    Left out is a call whose arguments no answer can hold: cut off in the middle, without end, or no JSON object.
    """
    whole_calls = []
    for call in calls:
        try:
            arguments = finite_json(call.arguments or "{}")
        except (ValueError, RecursionError):
            continue
        if isinstance(arguments, dict):
            whole_calls.append((call, arguments))
    return whole_calls
