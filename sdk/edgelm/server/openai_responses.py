"""POST /v1/responses and /v1/responses/input_tokens, as OpenAI defines them; nothing is stored.

https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from edgelm.completion import Chunk, Completion, TokenLogprob, ToolCallDelta, Usage
from edgelm.server.answers import MAX_TEXTS, Answers, Job
from edgelm.server.api_error import ApiError
from edgelm.server.delivery import calls_around_text, count_tokens, deliver
from edgelm.server.endpoint import Call
from edgelm.server.forms import constraint_of
from edgelm.server.loaded_model import LoadedModel
from edgelm.server.logprobs import LogprobsOfText, LogprobWriter, alternatives
from edgelm.server.openai_chat import chat_jobs
from edgelm.server.response_input import as_chat, custom_names_of, namespaces_of
from edgelm.server.sampling_fields import generation_config
from edgelm.server.sse import KEEPALIVE, JsonAnswer, event

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

# The types of items that call a tool -> the field of what it gets.
_ARGUMENTS = {"function_call": "arguments", "custom_tool_call": "input"}
_ECHOED = (
    "instructions", "max_output_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty",
    "top_logprobs", "user",
)  # fmt: skip


async def create_response(call: Call) -> Response:
    """Answer an input."""
    body = call.body
    chat = await call.in_thread(as_chat, body)

    def prepare(served: LoadedModel) -> tuple[list[Job], ResponseWriter]:
        return _jobs(served.model, chat), ResponseWriter(
            model=served.name, body=body, logprobs=LogprobWriter.of(served.model, chat)
        )

    return await deliver(call, prepare, streaming=bool(body.get("stream")))


async def count_input_tokens(call: Call) -> Response:
    """Count the tokens that the answer to an input would begin behind."""
    chat = await call.in_thread(as_chat, call.body)
    tokens = await count_tokens(call, lambda model: _jobs(model, chat))
    return JsonAnswer({"object": "response.input_tokens", "input_tokens": tokens})


def _jobs(model: LanguageModel, chat: Mapping[str, Any]) -> list[Job]:
    config = generation_config(
        model,
        chat,
        max_tokens=chat.get("max_tokens"),
        logprobs=alternatives(chat),
        constraint=constraint_of(chat),
    )
    jobs = chat_jobs(model, chat, config, effort_field="reasoning.effort")
    return jobs if config.logprobs is None else [_with_logprobs_of_text(job) for job in jobs]


def _with_logprobs_of_text(job: Job) -> Job:
    return replace(job, parser=lambda: LogprobsOfText(before=None if job.parser is None else job.parser()))


@dataclass(kw_only=True)
class ResponseWriter:
    """Write one response, and the events in which it comes to be."""

    model: str
    body: Mapping[str, Any]
    logprobs: LogprobWriter | None = None
    media_type = "text/event-stream"
    _id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    _created: int = field(default_factory=lambda: int(time.time()))
    _sequence: int = 0
    _kept: int = 0  # log-probabilities
    _output: list[dict[str, Any]] = field(default_factory=list)  # the items so far; the last one may be unfinished

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the finished response."""
        (answer,) = completions
        if answer.reasoning:
            self._output.append(_reasoning(answer.reasoning))
        if answer.text or not answer.tool_calls:
            self._output.append(_message(answer.text))
            self._output[-1]["content"][0]["logprobs"] = self._written(answer.logprobs)
        self._output += [self._call(call.id, call.name, call.arguments) for call in answer.tool_calls]
        self._output[-1]["status"] = _item_status(self._output[-1], answer.finish_reason)
        return self._response(answer.finish_reason, answer.usage)

    async def stream(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """Yield the events."""
        yield self._event("response.created", response=self._response(None, None))
        yield self._event("response.in_progress", response=self._response(None, None))
        async for item in answers.chunks():
            if item is None:
                yield KEEPALIVE
                continue
            for piece in self._take(item[1]):
                yield piece

    def error(self, error: ApiError) -> bytes:
        """Write an error as the last event."""
        return self._event("error", code=error.code or error.kind, message=str(error), param=error.param)

    def _take(self, chunk: Chunk) -> Iterator[bytes]:
        before, behind = calls_around_text(chunk)
        for delta in before:
            yield from self._add_call(delta)
        if chunk.reasoning:
            yield from self._add_text(_reasoning(""), chunk.reasoning)
        if chunk.text:
            yield from self._add_text(_message(""), chunk.text, logprobs=self._written(chunk.logprobs))
        for delta in behind:
            yield from self._add_call(delta)
        if chunk.finish_reason is None:
            return
        if not self._output or self._is_open("reasoning"):
            yield from self._close()
            yield from self._open(_message(""))
        yield from self._close(_item_status(self._output[-1], chunk.finish_reason))
        response = self._response(chunk.finish_reason, chunk.usage)
        yield self._event(f"response.{response['status']}", response=response)

    def _written(self, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        self._kept += sum(1 + len(token.alternatives) for token in tokens)
        if self._kept > MAX_TEXTS:
            raise ApiError(
                400,
                f"The answer has more than {MAX_TEXTS} log-probabilities, all of which its end repeats. Ask for fewer.",
            )
        return [] if self.logprobs is None else self.logprobs.write(tokens)

    def _add_text(self, empty: dict[str, Any], text: str, **more: list[Any]) -> Iterator[bytes]:
        """Add text, and what else belongs to it, to an item like `empty`, which may have to be opened."""
        if not self._is_open(empty["type"]):
            yield from self._close()
            yield from self._open(empty)
        part = self._output[-1]["content"][0]
        part["text"] += text
        for name, added in more.items():
            part[name] += added
        yield self._event(f"response.{part['type']}.delta", **self._place(content_index=0), delta=text, **more)

    def _add_call(self, delta: ToolCallDelta) -> Iterator[bytes]:
        if delta.name is not None:
            yield from self._close()
            yield from self._open(self._call(delta.id or "", delta.name, ""))
        if delta.arguments:
            item = self._output[-1]
            item[_ARGUMENTS[item["type"]]] += delta.arguments
            yield self._event(
                f"response.{item['type']}_{_ARGUMENTS[item['type']]}.delta", **self._place(), delta=delta.arguments
            )

    def _call(self, call_id: str, called: str, arguments: str) -> dict[str, Any]:
        namespace, name = namespaces_of(self.body).get(called, (None, called))
        is_custom = called in custom_names_of(self.body)
        kind = "custom_tool_call" if is_custom else "function_call"
        return {
            "id": f"{'ctc' if is_custom else 'fc'}_{secrets.token_hex(16)}",
            "type": kind,
            "status": "completed",
            "call_id": call_id,
            "name": name,
            _ARGUMENTS[kind]: arguments,
            **({} if namespace is None else {"namespace": namespace}),
        }

    def _is_open(self, kind: str) -> bool:
        return bool(self._output) and self._output[-1]["type"] == kind

    def _open(self, item: dict[str, Any]) -> Iterator[bytes]:
        item["status"] = "in_progress"
        self._output.append(item)
        shown = item | {"content": []} if "content" in item else item
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=shown)
        if "content" in item:
            yield self._event("response.content_part.added", **self._place(content_index=0), part=item["content"][0])

    def _close(self, status: str = "completed") -> Iterator[bytes]:
        if not self._output:
            return
        item = self._output[-1]
        item["status"] = status
        if "content" in item:
            part, place = item["content"][0], self._place(content_index=0)
            yield self._event(f"response.{part['type']}.done", **place, text=part["text"], **_logprobs_of(part))
            yield self._event("response.content_part.done", **place, part=part)
        else:
            field = _ARGUMENTS[item["type"]]
            named = {"name": item["name"]} if field == "arguments" else {}
            yield self._event(f"response.{item['type']}_{field}.done", **self._place(), **named, **{field: item[field]})
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _place(self, **more: int) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1, **more}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = event({"type": kind, "sequence_number": self._sequence, **fields}, kind)
        self._sequence += 1
        return data

    def _response(self, finish_reason: str | None, usage: Usage | None) -> dict[str, Any]:
        body = self.body
        status = "in_progress" if finish_reason is None else _status(finish_reason)
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            **{name: body.get(name) for name in _ECHOED},
            "model": self.model,
            "output": self._output,
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": {"effort": (body.get("reasoning") or {}).get("effort"), "summary": None},
            "store": False,
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice", "auto"),
            "tools": body.get("tools", []),
            "truncation": body.get("truncation", "disabled"),
            "metadata": body.get("metadata") or {},
            "usage": None if usage is None else _usage(usage),
        }


def _status(finish_reason: str) -> str:
    return "incomplete" if finish_reason == "length" else "completed"


def _item_status(item: Mapping[str, Any], finish_reason: str) -> str:
    """Return how the last item of an answer has ended: a call with "stop" was stopped inside its arguments."""
    is_cut_off = item["type"] in _ARGUMENTS and finish_reason == "stop"
    return "incomplete" if is_cut_off else _status(finish_reason)


def _message(text: str) -> dict[str, Any]:
    return {
        "id": f"msg_{secrets.token_hex(16)}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }


def _reasoning(text: str) -> dict[str, Any]:
    return {
        "id": f"rs_{secrets.token_hex(16)}",
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    }


def _logprobs_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the log-probabilities for the event that ends a part, where the part has the field."""
    return {"logprobs": part["logprobs"]} if "logprobs" in part else {}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
