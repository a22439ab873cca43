"""The server without sockets: hostile bodies go to the application as a connection would hand them over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutations import mutate_json

from edgelm.runtime.session_options import SessionOptions
from edgelm.server.api_error import ApiError
from edgelm.server.app import ServerApp
from edgelm.server.model_pool import ModelPool
from edgelm.server.options import RequestLimits, ServerOptions
from edgelm.testing import tiny_model_path

_ADDRESS = ("127.0.0.1", 8080)
_MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
_SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, "x"]}}, "required": ["a"], "additionalProperties": False}
_FUNCTION = {"name": "weather", "description": "Tell it.", "parameters": _SCHEMA}
# A request of each kind, with most of the fields that it may have.
_BODIES: Sequence[tuple[str, dict[str, Any]]] = (
    (
        "/v1/chat/completions",
        {"model": "tiny-random", "messages": _MESSAGES, "max_tokens": 2, "temperature": 0.7, "top_p": 0.9, "seed": 1,
         "stop": ["x", "\n"], "logit_bias": {"65": 1.5}, "logprobs": True, "top_logprobs": 2, "n": 2},
    ),
    (
        "/v1/chat/completions",
        {"messages": [*_MESSAGES, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "Rain."}],
         "max_completion_tokens": 2, "stream": True, "stream_options": {"include_usage": True},
         "tools": [{"type": "function", "function": _FUNCTION}],
         "tool_choice": {"type": "allowed_tools", "allowed_tools": {
             "mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]}}},
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2,
         "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA, "strict": True}}},
    ),
    (
        "/v1/chat/completions",
        {"messages": [*_MESSAGES, {"role": "assistant", "tool_calls": [
            {"id": "c", "type": "custom", "custom": {"name": "edit", "input": "b"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "Done."}],
         "tools": [{"type": "custom", "custom": {"name": "edit", "format": {"type": "grammar", "grammar": {
             "syntax": "lark", "definition": 'start: ("a" | /[b-z]/i)+ INT~1..2\n%import common.INT'}}}}],
         "tool_choice": {"type": "custom", "custom": {"name": "edit"}}, "max_tokens": 2},
    ),
    (
        "/v1/responses",
        {"input": [{"type": "custom_tool_call", "call_id": "c", "name": "edit", "input": "b"},
                   {"type": "custom_tool_call_output", "call_id": "c", "output": "Done."}],
         "tools": [{"type": "custom", "name": "edit", "format": {"type": "grammar", "syntax": "regex",
                                                                 "definition": '[^"]{1,9}'}}],
         "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "edit"}]},
         "max_output_tokens": 2},
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "guided_json": json.dumps(_SCHEMA),
         "structured_outputs": {"regex": "", "choice": [], "json_object": False}, "guided_decoding_backend": "auto"},
    ),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "grammar": 'root ::= "a" | [b-z] root # x'}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "structured_outputs": {"choice": ["a", "b"]}}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1, "echo": True, "logprobs": 1}),
    ("/v1/completions", {"prompt": [[5, 6, 7]], "max_tokens": 2, "stream": True, "min_p": 0.1, "min_tokens": 1}),
    ("/v1/responses", {"input": [{"role": "user", "content": "Hi"}], "instructions": "Be.", "max_output_tokens": 2}),
    (
        "/v1/responses",
        {"model": "tiny-random", "input": [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}", "namespace": "n"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "Rain."}]},
            {"type": "message", "role": "user", "content": "So?"}],
         "tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", **_FUNCTION}]},
                   {"type": "function", **_FUNCTION, "strict": True}],
         "tool_choice": {"type": "function", "name": "weather"}, "stream": True, "max_output_tokens": 2,
         "text": {"format": {"type": "text"}}, "include": ["reasoning.encrypted_content"], "top_p": 0.5},
    ),
    (
        "/v1/responses",
        {"input": "Hi", "max_output_tokens": 2, "temperature": 0.1, "reasoning": {"effort": "none"},
         "text": {"format": {"type": "json_schema", "name": "x", "schema": _SCHEMA}}},
    ),
    (
        "/v1/messages",
        {"model": "tiny-random", "max_tokens": 2, "system": [{"type": "text", "text": "Be.", "cache_control": {}}],
         "messages": [
             {"role": "user", "content": "Hi"},
             {"role": "assistant", "content": [
                 {"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "I look."},
                 {"type": "tool_use", "id": "c", "name": "weather", "input": {"a": 1}}]},
             {"role": "user", "content": [
                 {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "Rain."}],
                  "is_error": True}, {"type": "text", "text": "So?"}]}],
         "tools": [{"name": "weather", "description": "Tell it.", "input_schema": _SCHEMA, "strict": True}],
         "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}, "stream": True},
    ),
    (
        "/v1/messages",
        {"max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["x"],
         "messages": [{"role": "user", "content": "Hi"}], "thinking": {"type": "disabled"}, "metadata": {},
         "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
         "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": _SCHEMA}}},
    ),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "Hi"}], "tool_choice": {"type": "auto"}}),
    (
        "/api/chat",
        {"model": "tiny-random", "format": _SCHEMA, "keep_alive": "5m", "max_tokens": 2, "logprobs": True,
         "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [
             {"function": {"name": "weather", "arguments": {"a": 1}}}]},
             {"role": "tool", "tool_name": "weather", "content": "Rain."}],
         "options": {"num_predict": 2, "temperature": 0.5, "mirostat": 2, "mirostat_tau": 5.0, "seed": -1,
                     "top_k": 5, "num_ctx": 64}},
    ),
    (
        "/api/chat",
        {"model": "tiny-random", "messages": [{"role": "user", "content": "Hi"}], "stream": False,
         "tools": [{"type": "function", "function": _FUNCTION}], "tool_choice": "required",
         "options": {"num_predict": 2}},
    ),
    ("/api/embed", {"model": "tiny-random", "input": ["a", "b"], "truncate": True, "keep_alive": -1}),
    ("/api/show", {"model": "tiny-random", "verbose": True}),
    ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64"}),
    ("/api/chat", {"model": "tiny-random", "messages": [{"role": "user", "content": "Hi"}], "stream": False,
                   "options": {"num_predict": 2, "temperature": 0.5}}),
    ("/api/generate", {"model": "tiny-random", "prompt": "Hi", "options": {"num_predict": 2, "stop": ["x"]}}),
    ("/tokenize", {"messages": [{"role": "user", "content": "Hi"}], "return_token_strs": True}),
    ("/detokenize", {"tokens": [5, 6, 7]}),
)  # fmt: skip


def seeds() -> list[bytes]:
    """Return requests that are answered: the path in the first line, then the body."""
    return [path.encode() + b"\n" + json.dumps(body).encode() for path, body in _BODIES]


def mutate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Change the body."""
    path, _, body = data.partition(b"\n")
    return path + b"\n" + mutate_json(body, random, others)


def send(request: Path) -> None:
    """Send a request.

    Raises:
        ApiError: the server refuses it.
        AssertionError: the server failed at it.
    """
    path, _, body = request.read_bytes().partition(b"\n")
    caller, loop, app = _server()
    # In a thread of its own: where it is called from, a loop may be running.
    status, answer = caller.submit(loop.run_until_complete, _call(app, path.decode(), body)).result()
    assert status < 500, answer
    assert b"its log says why" not in answer, answer
    if status >= 400:
        raise ApiError(status, answer.decode())


@cache
def _server() -> tuple[ThreadPoolExecutor, asyncio.AbstractEventLoop, ServerApp]:
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))  # each thread takes address space, which is limited
    options = ServerOptions(
        keep_alive=None, runtime=SessionOptions(threads=1), limits=RequestLimits(request_seconds=0.05)
    )
    return ThreadPoolExecutor(1), loop, ServerApp(ModelPool((str(tiny_model_path()),), options), options)


async def _call(app: ServerApp, path: str, body: bytes) -> tuple[int, bytes]:
    """Play a connection, as ASGI defines it."""
    host = f"{_ADDRESS[0]}:{_ADDRESS[1]}".encode()
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "headers": [(b"host", host)], "server": _ADDRESS, "client": None, "scheme": "http",
    }  # fmt: skip
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    status, parts = 0, []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)
