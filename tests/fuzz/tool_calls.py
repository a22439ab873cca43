"""Tools that a client offers, in the form of each family of models, and what a model says with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzz.constraints import follow
from fuzz.mutations import mutate_bytes, mutate_json

from edgelm.completion import Chunk, Message, Timings, Usage
from edgelm.decoding.answer import join
from edgelm.errors import ConfigError
from edgelm.generation_config import GenerationConfig
from edgelm.server.ollama import OllamaWriter
from edgelm.server.sse import to_json
from edgelm.structure.tool_call_parser import ToolCallParser
from edgelm.structure.tool_formats import FORMATS, ToolFormat
from edgelm.structure.tool_messages import show_tools
from edgelm.structure.tools import listed_tools, tool_parameters, tool_settings

_VALUES = {"a": 1, "b": "x y", "c": [1.5, {"d": None}]}
_PARAMETERS = {
    "type": "object", "required": ["a"], "additionalProperties": False,
    "properties": {
        "a": {"type": ["integer", "null"], "minimum": 0}, "b": {"$ref": "#/$defs/t"}, "c": {"type": "array"},
        "e": {"anyOf": [{"type": "string", "enum": ["x"]}, {"allOf": [{"type": "boolean"}]}]},
    },
    "$defs": {"t": {"type": "string", "maxLength": 9}},
}  # fmt: skip
_OFFER: dict[str, Any] = {
    "tools": [
        {"type": "function", "function": {"name": "f", "description": "Do it.", "parameters": _PARAMETERS}},
        {"type": "function", "function": {"name": "g", "strict": True}},
    ],
    "choice": "required", "parallel": True,
}  # fmt: skip
_PIECES = (
    "{", "}", "[", "]", "(", ")", '"', "'", "\\", "\\u", "\\ud800", "\\x4", "\\N{X}", "=", ":", ",", "{}", '"name"',
    "None", "NaN", "-Infinity", "1e999", "0x" + "f" * 5000, "9" * 5000, "[" * 3000, "f(" * 500, '{"a":' * 500, '"""',
    "f'", "#", "\n", "f", "<", "</", "\0", "\U0001f600", "1_0", "lambda: 1", "-", ".", "j", "b'", "True",
)  # fmt: skip


def prepare(_folder: Path) -> Sequence[bytes]:
    """Return offers, each with a format's number and an answer in it, the first two in a line."""
    return [
        json.dumps(_OFFER).encode() + b"\n%d\n" % number + _said(format_).encode()
        for number, format_ in enumerate(FORMATS)
    ]


def _said(format_: ToolFormat) -> str:
    arguments = json.dumps(_VALUES)
    if (tags := format_.tags) is not None:
        values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in _VALUES.items()}
        written = (tags.before_key + key + tags.behind_key + value + tags.value_end for key, value in values.items())
        call = f"{tags.before_name}f{tags.behind_name}{tags.behind_value.join(written)}{tags.behind_value}{tags.end}"
    elif format_.is_python:
        call = f"{format_.brackets[0]}f(a=1, b='x\\'y', c=[1.5, {{'d': None}}]){format_.brackets[1]}"
    elif format_.quote:
        call = f"call:f{{a:1,b:{format_.quote}x y{format_.quote},c:[1.5,{{d:null}}]}}"
    elif format_.name_end:
        call = f"f{format_.name_end}{arguments}"
    else:
        call = f'{{"name": "f", "{format_.argument_key}": {arguments}}}'
        call = f"[{call}]" if format_.is_list else call
    return f"Let me see. {format_.start}{format_.before}{call}{format_.behind}{format_.end}"


def mutate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Change the offer, or put pieces anywhere into the answer."""
    offer, number, said = data.split(b"\n", 2)
    if random.random() < 0.4:
        return b"\n".join([mutate_json(offer, random).replace(b"\n", b" "), number, said])
    text = said.decode()
    for _ in range(random.choice((1, 1, 2, 4))):
        place, piece = random.randrange(len(text) + 1), random.choice(_PIECES)
        text = text[:place] + piece + text[place + random.choice((0, len(piece) % 9)) :]
    said = text.encode()
    return b"\n".join([offer, number, mutate_bytes(said, random) if random.random() < 0.2 else said])


def read(path: Path) -> None:
    """Take an answer apart, show the offer to a template, and hold an answer to it."""
    offer, number, said = path.read_bytes().split(b"\n", 2)
    format_ = FORMATS[int(number) % len(FORMATS)]
    try:
        given = json.loads(offer)
        tools, choice, parallel = (given[key] for key in ("tools", "choice", "parallel"))
        tools = listed_tools(tools)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(str(error)) from error
    calls = _calls(said.decode("utf-8", "replace"), format_, tools=[])
    settings = tool_settings(GenerationConfig(), tools, choice, format_, parallel=parallel)
    calls += _calls(said.decode("utf-8", "replace"), format_, tools)
    asked = [Message(role="user", content="Hi"), Message(role="assistant", content=None, tool_calls=calls)]
    show_tools(asked, tools, format_)
    if settings.constraint is not None:
        follow(settings.constraint)


def _calls(text: str, format_: ToolFormat, tools: Sequence[Any]) -> list[Any]:
    parser = ToolCallParser(format_, tool_parameters(tools))
    pieces = [text[place : place + 7] for place in range(0, len(text), 7)]
    chunks = [parser.take(Chunk(text=piece, token_ids=(1,))) for piece in pieces]
    timings = Timings(prefill_seconds=0, decode_seconds=0, prefill_tokens=1, decode_tokens=1)
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    end = parser.take(Chunk(text="", token_ids=(1,), finish_reason="stop", usage=usage, timings=timings))
    answer = join([*chunks, end])
    writer = OllamaWriter(model="m", is_chat=True, load_seconds=0, logprobs=None)
    to_json(writer.whole([answer]))
    return list(answer.tool_calls)
