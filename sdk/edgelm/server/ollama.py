"""Ollama's answers: /api/chat and /api/generate.

https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from edgelm.completion import Chunk, Completion, Timings, TokenLogprob, ToolCall, Usage
from edgelm.decoding.answer import join
from edgelm.decoding.context_shift import fitted
from edgelm.server.answers import Answers, Job
from edgelm.server.api_error import ApiError
from edgelm.server.chat_messages import CHAT, FUNCTIONS, MAX_MESSAGES, MAX_TOOLS, chat_job, messages_of, thinking
from edgelm.server.delivery import deliver, readable
from edgelm.server.endpoint import Call
from edgelm.server.keep_alive import KEEP_ALIVE, acquire, seconds_of
from edgelm.server.loaded_model import LoadedModel
from edgelm.server.logprobs import LOGPROBS, LogprobWriter, alternatives
from edgelm.server.sampling_fields import RUNNER, SAMPLING, generation_config
from edgelm.server.schema import ANY_OBJECT, BOOLEAN, TEXT, Schema, choice, listing, record, whole
from edgelm.server.sse import JsonAnswer, line
from edgelm.structure.constraint import Constraint
from edgelm.text.fill_in_middle import fill_in_ids

if TYPE_CHECKING:
    from edgelm.generation_config import GenerationConfig
    from edgelm.language_model import LanguageModel

# Settings that the other paths have under the same name.
_AS_ELSEWHERE = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty", "repeat_penalty",
    "seed", "stop",
)  # fmt: skip
# 0 is off, 2 is Mirostat 2.0; the other two count only with 2.
_MIROSTAT: Mapping[str, Schema] = {
    "mirostat": {"type": "integer", "enum": [0, 2]},
    "mirostat_tau": SAMPLING["mirostat_tau"],
    "mirostat_eta": SAMPLING["mirostat_eta"],
}
_MIROSTAT_TAU = 5.0  # where none is given
_RUNNER_OPTIONS = (
    *RUNNER, "vocab_only", "f16_kv", "logits_all", "embedding_only", "penalize_newline",
    *("keep_alive", "max_workers"),  # langextract writes its own here
)  # fmt: skip
# A client of the AI SDK has these beside the options.
_OUTSIDE: Mapping[str, str] = {
    **{name: name for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "stop")},
    **dict.fromkeys(("max_tokens", "max_output_tokens"), "num_predict"),
}
_SHIFTS = ("truncate", "shift")  # whether the oldest part of a prompt, or of what an answer fills, may go
_MESSAGE = record(
    {
        "role": choice("system", "user", "assistant", "tool"),
        "content": TEXT,
        "tool_calls": listing(
            record(
                {"function": record({"name": TEXT, "arguments": ANY_OBJECT}, required=("name",), ignored=("index",))},
                required=("function",),
                ignored=("id", "type", "index"),
            ),
            most=MAX_TOOLS,
        ),
        "tool_name": TEXT,
        "name": TEXT,
        "thinking": TEXT,
    },
    required=("role",),
    ignored=("tool_call_id",),
    refused={"images": "these models read text alone."},
)
_FILLS_CONTEXT = -2  # as num_predict
_SETTINGS: dict[str, Schema] = {name: SAMPLING[name] for name in _AS_ELSEWHERE} | {
    "num_predict": whole(_FILLS_CONTEXT),
    "num_keep": whole(-1),
}
_COMMON: dict[str, Schema] = {
    "model": TEXT,
    "stream": BOOLEAN,
    "format": {"anyOf": [choice("", "json"), ANY_OBJECT]},
    "options": record(
        {**_SETTINGS, **_MIROSTAT},
        ignored=_RUNNER_OPTIONS,
        # Open WebUI puts the settings of OpenAI's paths here too.
        refused={
            "tfs_z": "use top_p or min_p.",
            "logit_bias": "/v1/chat/completions has it.",
            "reasoning_effort": "use think, beside the options.",
        },
    ),
    "keep_alive": KEEP_ALIVE,
    **LOGPROBS,
    "think": {"anyOf": [BOOLEAN, choice("low", "medium", "high")]},
    **dict.fromkeys(_SHIFTS, BOOLEAN),
    **{theirs: _SETTINGS[name] for theirs, name in _OUTSIDE.items()},
}
_REFUSED = {"_debug_render_only": "/tokenize shows how a conversation is read."}
CHAT_BODY = record(
    {
        **_COMMON,
        "messages": listing(_MESSAGE, most=MAX_MESSAGES),
        "tools": FUNCTIONS,
        "tool_choice": CHAT["tool_choice"],
    },
    required=("model", "messages"),
    ignored=("user",),
    refused=_REFUSED,
)
GENERATE_BODY = record(
    {**_COMMON, "prompt": TEXT, "suffix": TEXT, "system": TEXT, "raw": BOOLEAN},
    required=("model",),
    ignored=("user",),
    refused=_REFUSED
    | {
        "echo": "/v1/completions has it.",
        "images": "these models read text alone.",
        "template": "the model has its own; send raw: true for a prompt of your own.",
        "context": "send the conversation to /api/chat.",
        **dict.fromkeys(("tools", "tool_choice"), "/api/chat has them."),
    },
)


async def chat(call: Call) -> Response:
    """Answer a conversation."""

    def jobs(model: LanguageModel) -> list[Job]:
        body = call.body
        messages = messages_of({"messages": [_message(message) for message in body["messages"]]})
        return [chat_job(model, body, messages, _config(model, body), _template_variables(model, body))]

    return await _deliver(call, jobs, is_chat=True, only_load=not call.body["messages"])


async def generate(call: Call) -> Response:
    """Answer one prompt."""

    def jobs(model: LanguageModel) -> list[Job]:
        body = call.body
        prompt, config = body.get("prompt", ""), _config(model, body)
        variables = _template_variables(model, body)
        if body.get("think") and (body.get("raw") or body.get("suffix")):
            raise ApiError(400, "think does not go with raw or suffix: the chat template is left out.", param="think")
        if body.get("suffix"):
            if body.get("system"):
                raise ApiError(400, "system does not go with suffix: code is completed without it.", param="system")
            prompt_ids = fill_in_ids(model.tokenizer, prompt, body["suffix"])
        elif body.get("raw") or model.chat_template is None:
            prompt_ids = model.tokenizer.encode_prompt(prompt)
        else:
            system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
            messages = messages_of({"messages": [*system, {"role": "user", "content": prompt}]})
            return [chat_job(model, body, messages, config, variables)]
        return [Job(prompt_ids=prompt_ids, config=config)]

    return await _deliver(call, jobs, is_chat=False, only_load=not (call.body.get("prompt") or call.body.get("suffix")))


async def _deliver(
    call: Call, jobs: Callable[[LanguageModel], list[Job]], *, is_chat: bool, only_load: bool
) -> Response:
    name, seconds = call.pool.resolve(call.body["model"]), seconds_of(call)

    if only_load:  # Ollama's clients load or unload a model with a request that asks nothing
        if seconds == 0:
            await call.pool.unload(name)
        else:
            (await acquire(call)).release()
        reason = "unload" if seconds == 0 else "load"
        return JsonAnswer(_frame(name, is_chat) | {"done": True, "done_reason": reason})

    def prepare(served: LoadedModel) -> tuple[list[Job], OllamaWriter]:
        served.keep_for(seconds)
        logprobs = LogprobWriter.of(served.model, call.body)
        writer = OllamaWriter(model=served.name, is_chat=is_chat, load_seconds=call.seconds, logprobs=logprobs)
        return [_in_context(served, call.body, job) for job in jobs(served.model)], writer

    return await deliver(call, prepare, streaming=call.body.get("stream", True))


def _in_context(served: LoadedModel, body: Mapping[str, Any], job: Job) -> Job:
    """Return an answer with what num_keep and num_predict say of its context, once the prompt's tokens are known."""
    given, shift = _given(body), job.config.context_shift
    if shift is None:
        return job
    if (kept := given.get("num_keep", 0)) != 0:
        most = served.context_length // 2
        shift = max(shift, min(most, kept if kept > 0 else len(job.prompt_ids)))  # -1: all of the prompt
    if given.get("num_predict") != _FILLS_CONTEXT:
        return replace(job, config=job.config.replace(context_shift=shift))
    first = max(shift, len(served.model.tokenizer.leading_ids))
    prompt_ids = fitted(job.prompt_ids, first, served.context_length)
    return replace(job, prompt_ids=prompt_ids, config=job.config.replace(context_shift=None))


def _config(model: LanguageModel, body: Mapping[str, Any]) -> GenerationConfig:
    given = _given(body)
    settings = {name: given[name] for name in (*_AS_ELSEWHERE, "repeat_last_n") if name in given}
    if settings.get("seed") == -1:  # Ollama's default: a fresh one for each answer
        del settings["seed"]
    if given.get("mirostat") == 2:
        settings["mirostat_tau"] = given.get("mirostat_tau", _MIROSTAT_TAU)
        if "mirostat_eta" in given:
            settings["mirostat_eta"] = given["mirostat_eta"]
    limit = given.get("num_predict", -1)
    form = body.get("format")
    constraint = None
    if form == "json":
        constraint = Constraint.json_object()
    elif form:
        constraint = Constraint.json_schema(form, strict=False)  # as Ollama's own
    return generation_config(
        model,
        settings,
        max_tokens=limit if limit > 0 else None,
        constraint=constraint,
        logprobs=alternatives(body),
        context_shift=_context_shift(model, body),
    )


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a request; those among its options count before those beside them."""
    given = {name: body[theirs] for theirs, name in _OUTSIDE.items() if theirs in body}
    return given | {name: value for name, value in body.get("options", {}).items() if value is not None}


def _context_shift(model: LanguageModel, body: Mapping[str, Any]) -> int | None:
    """Return how many tokens stay of a text that outgrows the context; None: it is refused, or ends there."""
    if not all(body.get(name, True) for name in _SHIFTS):
        return None
    kept = model.generation_config.context_shift
    # Of code with a suffix, the mark at the beginning would go.
    return 0 if kept is None and not body.get("suffix") else kept


def _template_variables(model: LanguageModel, body: Mapping[str, Any]) -> dict[str, object]:
    think = body.get("think")
    if think is None:
        return {}
    return thinking(model, "think", bool(think), think if isinstance(think, str) else None)


def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message in OpenAI's form, in which a call's arguments are text."""
    message = {"role": given["role"], "content": given.get("content") or ""}  # one that is left out is an empty one
    for name, ours in (("tool_name", "name"), ("thinking", "reasoning_content")):
        if given.get(name):
            message[ours] = given[name]
    if given.get("tool_calls"):
        message["tool_calls"] = [
            {
                "type": "function",
                "function": {
                    "name": tool_call["function"]["name"],
                    "arguments": json.dumps(tool_call["function"].get("arguments") or {}, ensure_ascii=False),
                },
            }
            for tool_call in given["tool_calls"]
        ]
    return message


def _frame(
    model: str,
    is_chat: bool,
    text: str = "",
    calls: Sequence[tuple[ToolCall, dict[str, Any]]] = (),
    thinking: str = "",
) -> dict[str, Any]:
    created = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
    frame: dict[str, Any] = {"model": model, "created_at": created}
    thought = {"thinking": thinking} if thinking else {}
    if not is_chat:
        return frame | {"response": text} | thought
    message: dict[str, Any] = {"role": "assistant", "content": text} | thought
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"index": i, "name": call.name, "arguments": arguments}}
            for i, (call, arguments) in enumerate(calls)
        ]
    return frame | {"message": message}


@dataclass(frozen=True, kw_only=True)
class OllamaWriter:
    """Write answers as Ollama does: one line of JSON for each piece, a tool's call only when it is whole.

    load_seconds: how long the request waited for its model.
    """

    model: str
    is_chat: bool
    load_seconds: float
    logprobs: LogprobWriter | None
    media_type = "application/x-ndjson"

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the one answer."""
        (answer,) = completions
        calls = readable(answer.tool_calls)
        frame = _frame(self.model, self.is_chat, answer.text, calls, answer.reasoning)
        frame |= self._logprobs(answer.logprobs)
        return frame | self._end(answer.finish_reason, answer.usage, answer.timings)

    async def stream(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """Yield the lines."""
        chunks: list[Chunk] = []
        async for item in answers.chunks():
            if item is None:  # the protocol has no empty line
                continue
            _, chunk = item
            chunks.append(replace(chunk, logprobs=()))  # for the calls; of all log-probabilities it would be 100 MB
            logprobs = self._logprobs(chunk.logprobs)
            if chunk.text or chunk.reasoning or logprobs:
                frame = _frame(self.model, self.is_chat, chunk.text, thinking=chunk.reasoning)
                yield line(frame | logprobs | {"done": False})
            if chunk.finish_reason is not None and chunk.usage is not None and chunk.timings is not None:
                calls = readable(join(chunks).tool_calls)
                if calls:
                    yield line(_frame(self.model, self.is_chat, calls=calls) | {"done": False})
                end = self._end(chunk.finish_reason, chunk.usage, chunk.timings)
                yield line(_frame(self.model, self.is_chat) | end)

    def error(self, error: ApiError) -> bytes:
        """Write an error as the last line."""
        return line(error.ollama)

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        written = [] if self.logprobs is None else self.logprobs.write(tokens)
        return {"logprobs": written} if written else {}

    def _end(self, reason: str, usage: Usage, timings: Timings) -> dict[str, Any]:
        seconds = {"load": self.load_seconds, "prompt_eval": timings.prefill_seconds, "eval": timings.decode_seconds}
        total = sum(seconds.values()) + timings.queued_seconds
        return {
            "done": True,
            "done_reason": "stop" if reason == "tool_calls" else reason,
            **({} if self.is_chat else {"context": []}),  # some clients read no answer without it
            "total_duration": math.ceil(total * 1e9),
            "prompt_eval_count": usage.prompt_tokens,
            "eval_count": usage.completion_tokens,
            **{f"{name}_duration": int(value * 1e9) for name, value in seconds.items()},
        }
