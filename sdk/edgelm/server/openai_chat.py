"""POST /v1/chat/completions, as OpenAI defines it (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from edgelm._version import __version__
from edgelm.completion import Chunk, Completion, TokenLogprob, ToolCallDelta, Usage
from edgelm.server import chat_messages
from edgelm.server.answers import Answers, Job
from edgelm.server.api_error import ApiError
from edgelm.server.custom_tools import custom_names
from edgelm.server.delivery import deliver
from edgelm.server.endpoint import Call
from edgelm.server.forms import constraint_of
from edgelm.server.loaded_model import LoadedModel
from edgelm.server.logprobs import LOGPROBS, LogprobWriter, alternatives
from edgelm.server.sampling_fields import HARMLESS, MAX_CHOICES, REFUSED, SAMPLING, generation_config, with_seed
from edgelm.server.schema import BOOLEAN, TEXT, choice, listing, record, whole
from edgelm.server.sse import DONE, KEEPALIVE, event

if TYPE_CHECKING:
    from edgelm.generation_config import GenerationConfig
    from edgelm.language_model import LanguageModel

STREAM_OPTIONS = record({"include_usage": BOOLEAN}, ignored=("include_obfuscation", "continuous_usage_stats"))
# OpenRouter's form of reasoning_effort, which other servers take too.
_REASONING = record(
    {"effort": chat_messages.TEMPLATE_VARIABLES["reasoning_effort"], "enabled": BOOLEAN},
    refused={
        "exclude": "what was thought comes apart, as reasoning_content.",
        "max_tokens": "max_tokens beside it limits the whole answer.",
    },
)
BODY = record(
    {
        "model": TEXT,
        **chat_messages.CHAT,
        **SAMPLING,
        "reasoning": _REASONING,
        "n": whole(1, MAX_CHOICES),
        "stream": BOOLEAN,
        "stream_options": STREAM_OPTIONS,
        **LOGPROBS,
        "modalities": listing(choice("text"), most=1),
        **dict.fromkeys(("add_generation_prompt", "continue_final_message"), BOOLEAN),
    },
    required=("messages",),
    # The last two are vLLM's: a last message of the assistant's is gone on with anyway, and others get an answer.
    ignored=(*HARMLESS, "add_generation_prompt", "continue_final_message"),
    refused={**REFUSED, **chat_messages.REFUSED},
)
ANSWER = record(
    {"id": TEXT, "object": TEXT, "choices": {"type": "array", "items": {}}}, required=("id", "choices"), open_ended=True
)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is the same in all parts of one answer."""

    model: str
    kind: str
    prefix: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: Sequence[object], **more: Any) -> dict[str, Any]:
        """Return the object with these choices."""
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"edgelm-{__version__}",  # OpenRouter's client reads no answer without it
            "choices": list(choices),
            **more,
        }


async def create_chat_completion(call: Call) -> Response:
    """Answer a conversation."""
    body = call.body
    _check_beginning(body)
    streaming = bool(body.get("stream"))

    def prepare(served: LoadedModel) -> tuple[list[Job], ChatWriter]:
        writer = ChatWriter(
            frame=Frame(
                model=served.name, kind="chat.completion.chunk" if streaming else "chat.completion", prefix="chatcmpl"
            ),
            logprobs=LogprobWriter.of(served.model, body),
            with_usage=bool((body.get("stream_options") or {}).get("include_usage")),
            custom=custom_names(body.get("tools", ())),
        )
        return _jobs(served.model, body), writer

    return await deliver(call, prepare, streaming=streaming)


def _check_beginning(body: Mapping[str, Any]) -> None:
    """Check that vLLM's two fields say of an answer's beginning what is done here."""
    goes_on = body["messages"][-1]["role"] == "assistant"
    for name, value in (("continue_final_message", goes_on), ("add_generation_prompt", not goes_on)):
        if body.get(name, value) is not value:
            rule = "an answer goes on with a last message of the assistant's, and begins behind any other"
            raise ApiError(400, f"{name} has to be {str(value).lower()} here: {rule}.", param=name)


def _jobs(model: LanguageModel, body: Mapping[str, Any]) -> list[Job]:
    config = generation_config(
        model,
        body,
        max_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
        logprobs=alternatives(body),
        constraint=constraint_of(body),
    )
    effort = _effort(body.get("reasoning") or {})
    if "reasoning_effort" in body or effort is None:
        return chat_jobs(model, body, config, effort_field="reasoning_effort")
    return chat_jobs(model, {**body, "reasoning_effort": effort}, config, effort_field="reasoning.effort")


def _effort(reasoning: Mapping[str, Any]) -> str | None:
    if reasoning.get("enabled") is False:
        return "none"
    return reasoning.get("effort") or ("medium" if reasoning.get("enabled") else None)


def chat_jobs(
    model: LanguageModel, body: Mapping[str, Any], config: GenerationConfig, *, effort_field: str
) -> list[Job]:
    """Return the answers that a request in OpenAI's form asks for: its messages, tools and n.

    effort_field: as of `chat_messages.template_variables`.

    Raises:
        ApiError, EdgeLMError: what the model or its template has against them.
    """
    variables = chat_messages.template_variables(model, body, effort_field=effort_field)
    job = chat_messages.chat_job(model, body, chat_messages.messages_of(body), config, variables)
    return [replace(job, config=with_seed(job.config, index)) for index in range(body.get("n", 1))]


@dataclass(frozen=True, kw_only=True)
class ChatWriter:
    """Write chat completions and their chunks. custom: the names of the tools whose calls have an input."""

    frame: Frame
    logprobs: LogprobWriter | None
    with_usage: bool
    custom: frozenset[str] = frozenset()
    media_type = "text/event-stream"

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return a chat completion."""
        choices = []
        for index, completion in enumerate(completions):
            message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
            if completion.reasoning:
                message["reasoning_content"] = completion.reasoning
            if completion.tool_calls:
                message["content"] = completion.text or None
                message["tool_calls"] = [
                    {"id": call.id, **_call(call.name in self.custom, call.name, call.arguments)}
                    for call in completion.tool_calls
                ]
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._logprobs(completion.logprobs),
                    "finish_reason": completion.finish_reason,
                }
            )
        return self.frame.around(choices, usage=usage_of([completion.usage for completion in completions]))

    async def stream(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """Yield the chunks: the role first, then what is new, the reason last; the usage where it was asked for."""
        for index in range(len(answers.jobs)):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
        usages: list[Usage] = []
        custom: set[tuple[int, int]] = set()  # the calls of such tools, by their answer and their place in it
        async for item in answers.chunks():
            if item is None:
                yield KEEPALIVE
                continue
            index, chunk = item
            custom |= {(index, call.index) for call in chunk.tool_calls if call.name in self.custom}
            delta = _delta(chunk, {call for answer, call in custom if answer == index})
            logprobs = self._logprobs(chunk.logprobs) if chunk.logprobs else None
            if delta or logprobs:
                yield self._chunk(index, delta, logprobs)
            if chunk.finish_reason is not None:
                yield self._chunk(index, {}, None, chunk.finish_reason)
            if chunk.usage is not None:
                usages.append(chunk.usage)
        if self.with_usage:
            yield event(self.frame.around([], usage=usage_of(usages)))
        yield DONE

    def error(self, error: ApiError) -> bytes:
        """Write an error as the stream's last event."""
        return event(error.openai)

    def _chunk(
        self, index: int, delta: Mapping[str, Any], logprobs: object = None, finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event(self.frame.around([choice], **({"usage": None} if self.with_usage else {})))

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return None if self.logprobs is None else {"content": self.logprobs.write(tokens), "refusal": None}


def _delta(chunk: Chunk, custom: Collection[int]) -> dict[str, Any]:
    delta: dict[str, Any] = {"content": chunk.text} if chunk.text else {}
    if chunk.reasoning:
        delta["reasoning_content"] = chunk.reasoning
    if chunk.tool_calls:
        delta["tool_calls"] = [_call_delta(call, call.index in custom) for call in chunk.tool_calls]
    return delta


def _call_delta(call: ToolCallDelta, is_custom: bool) -> dict[str, Any]:
    """Write a piece of a tool call: the first one has the id and the name, each has what is new in the arguments."""
    written = _call(is_custom, call.name, call.arguments)
    if call.id is None:
        del written["type"]
    return {"index": call.index, **({} if call.id is None else {"id": call.id}), **written}


def _call(is_custom: bool, name: str | None, arguments: str) -> dict[str, Any]:
    kind, field = ("custom", "input") if is_custom else ("function", "arguments")
    return {"type": kind, kind: ({} if name is None else {"name": name}) | {field: arguments}}


def usage_of(usages: Sequence[Usage]) -> dict[str, Any]:
    """Add up the usage of the answers to one prompt, which counts once."""
    prompt = max((usage.prompt_tokens for usage in usages), default=0)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min((usage.cached_tokens for usage in usages), default=0)},
        "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning_tokens for usage in usages)},
    }
