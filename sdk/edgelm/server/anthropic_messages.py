"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic defines them; nothing is stored.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from edgelm.completion import Chunk, Completion, FinishReason, Usage
from edgelm.server.answers import Answers, Job
from edgelm.server.api_error import ApiError
from edgelm.server.chat_messages import chat_job, messages_of, thinking
from edgelm.server.delivery import calls_around_text, count_tokens, deliver, readable
from edgelm.server.endpoint import Call
from edgelm.server.forms import constraint_of
from edgelm.server.loaded_model import LoadedModel
from edgelm.server.message_input import as_chat
from edgelm.server.sampling_fields import generation_config
from edgelm.server.schema import TEXT, record, whole
from edgelm.server.sse import JsonAnswer, event
from edgelm.text.thinking import EFFORT

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

ANSWER = record(
    {"id": TEXT, "type": TEXT, "role": TEXT, "content": {"type": "array", "items": {}}},
    required=("id", "type", "role", "content"),
    open_ended=True,
)
COUNT = record({"input_tokens": whole(0)}, required=("input_tokens",))
_STOP_REASONS: Mapping[FinishReason, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
# A kind of block -> the kind of the pieces that it comes in, and the field in which they have it.
_DELTAS: Mapping[str, tuple[str, str]] = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
# Programs send back what was thought if it has a signature, and nobody here reads it.
_SIGNATURE = "unsigned"


async def create_message(call: Call) -> Response:
    """Answer a conversation."""
    body = call.body
    chat = await call.in_thread(as_chat, body)  # a third of a second for a megabyte of calls
    streaming, most = bool(body.get("stream")), body["max_tokens"]
    if streaming and not most:
        raise ApiError(400, "max_tokens is 0: there is no answer to stream.", param="stream")

    def prepare(served: LoadedModel) -> tuple[list[Job], MessageWriter]:
        job = _job(served.model, body, chat)
        room = served.context_length + 1  # the last token of an answer takes none
        ends_early = job.config.context_shift is None and len(job.prompt_ids) + most > room
        writer = MessageWriter(
            model=served.name,
            stop_sequences=body.get("stop_sequences", ()),
            full_at=room if ends_early else None,
            without_answer=not most,
        )
        return [job], writer

    return await deliver(call, prepare, streaming=streaming)


async def count_message_tokens(call: Call) -> Response:
    """Count the tokens of a request without answering it."""
    body = call.body
    chat = await call.in_thread(as_chat, body)
    tokens = await count_tokens(call, lambda model: [_job(model, body, chat)])
    return JsonAnswer({"input_tokens": tokens})


def _job(model: LanguageModel, body: Mapping[str, Any], chat: Mapping[str, Any]) -> Job:
    constraint = constraint_of(chat)
    most = chat.get("max_tokens")
    config = generation_config(model, chat, max_tokens=1 if most == 0 else most, constraint=constraint)
    return chat_job(model, chat, messages_of(chat), config, _template_variables(model, body))


def _template_variables(model: LanguageModel, body: Mapping[str, Any]) -> dict[str, object]:
    """Return what a request says to the chat template.

    An effort is about the whole answer there: a template that reads none is told it in vain.
    """
    wanted, effort = (body.get("thinking") or {}).get("type"), (body.get("output_config") or {}).get("effort")
    if wanted in ("enabled", "disabled"):
        return thinking(model, "thinking.type", wanted == "enabled", effort)
    return {} if effort is None else {EFFORT: effort}


@dataclass(kw_only=True)
class MessageWriter:
    """Write one message, and the events in which it comes to be.

    stop_sequences: those of the request; a stop text of the model's author is none of them. full_at: how many tokens a
    prompt has with its answer where the context ends that before max_tokens; None: it does not. without_answer: the one
    token that the engine makes at least is left out.
    """

    model: str
    stop_sequences: Sequence[str]
    full_at: int | None = None
    without_answer: bool = False
    media_type = "text/event-stream"
    _id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    _index: int = -1  # of the newest block, which is open
    _open: str | None = None  # what kind it is

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the finished message."""
        (answer,) = completions
        if self.without_answer:
            usage = replace(answer.usage, completion_tokens=0, reasoning_tokens=0)
            return self._message([], usage) | {"stop_reason": "max_tokens"}
        calls = readable(answer.tool_calls)
        if answer.finish_reason == "tool_calls" and not calls:  # none that this answer could hold
            answer = replace(answer, finish_reason="stop")
        content = [_thinking(answer.reasoning)] if answer.reasoning else []
        if answer.text or not calls:
            content.append(_text(answer.text))
        content += [_tool_use(call.id, call.name, arguments) for call, arguments in calls]
        return self._message(content, answer.usage) | self._end(answer)

    async def stream(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """Yield the events."""
        (job,) = answers.jobs
        usage = Usage(prompt_tokens=len(job.prompt_ids), completion_tokens=0)
        yield _event("message_start", message=self._message([], usage))
        async for item in answers.chunks():
            if item is None:
                yield _event("ping")
                continue
            for piece in self._take(item[1]):
                yield piece

    def error(self, error: ApiError) -> bytes:
        """Write an error as the last event."""
        return event(error.anthropic, "error")

    def _take(self, chunk: Chunk) -> Iterator[bytes]:
        before, behind = calls_around_text(chunk)
        for delta in before:
            yield self._delta(delta.arguments)
        if chunk.reasoning:
            yield from self._add(_thinking(""), chunk.reasoning)
        if chunk.text:
            yield from self._add(_text(""), chunk.text)
        for delta in behind:
            if delta.name is not None:
                yield from self._begin(_tool_use(delta.id or "", delta.name, {}))
            if delta.arguments:
                yield self._delta(delta.arguments)
        if chunk.finish_reason is None or chunk.usage is None:
            return
        if self._open in (None, "thinking"):
            yield from self._begin(_text(""))
        yield from self._close()
        yield _event("message_delta", delta=self._end(chunk), usage=_usage(chunk.usage))
        yield _event("message_stop")

    def _add(self, empty: dict[str, Any], text: str) -> Iterator[bytes]:
        if self._open != empty["type"]:
            yield from self._begin(empty)
        yield self._delta(text)

    def _begin(self, empty: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        self._index, self._open = self._index + 1, empty["type"]
        yield _event("content_block_start", index=self._index, content_block=empty)

    def _delta(self, text: str) -> bytes:
        assert self._open is not None
        kind, name = _DELTAS[self._open]
        return _event("content_block_delta", index=self._index, delta={"type": kind, name: text})

    def _close(self) -> Iterator[bytes]:
        if self._open == "thinking":
            signature = {"type": "signature_delta", "signature": _SIGNATURE}
            yield _event("content_block_delta", index=self._index, delta=signature)
        if self._open is not None:
            yield _event("content_block_stop", index=self._index)

    def _message(self, content: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def _end(self, last: Chunk | Completion) -> dict[str, Any]:
        assert last.finish_reason is not None
        if last.finish_reason == "stop" and last.stop in self.stop_sequences:
            return {"stop_reason": "stop_sequence", "stop_sequence": last.stop}
        is_full = last.finish_reason == "length" and last.usage is not None and last.usage.total_tokens == self.full_at
        reason = "model_context_window_exceeded" if is_full else _STOP_REASONS[last.finish_reason]
        return {"stop_reason": reason, "stop_sequence": None}


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": _SIGNATURE if text else ""}


def _tool_use(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def _usage(usage: Usage) -> dict[str, Any]:
    """Return the counts of tokens: what was cached is no part of the input there."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }
