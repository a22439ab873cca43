"""POST /v1/embeddings, /api/embed and /api/embeddings."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from edgelm.embedding import DEFAULT_POOLING, Pooling, embed
from edgelm.errors import TokenizerError
from edgelm.server.api_error import ApiError
from edgelm.server.endpoint import Call
from edgelm.server.keep_alive import KEEP_ALIVE, acquire
from edgelm.server.openai_completions import texts_or_ids, token_ids
from edgelm.server.schema import ANY_OBJECT, BOOLEAN, TEXT, Schema, choice, listing, record, whole
from edgelm.server.sse import JsonAnswer, to_json, unless_disconnected

if TYPE_CHECKING:
    from edgelm.server.loaded_model import LoadedModel

MAX_INPUTS = 2048  # OpenAI's: its clients send what they have in parts as large
_DIMENSIONS: Schema = whole(1)

BODY = record(
    {
        "model": TEXT,
        "input": texts_or_ids(MAX_INPUTS),
        "encoding_format": choice("float", "base64"),
        "pooling": choice(*get_args(Pooling)),
        "dimensions": _DIMENSIONS,
    },
    required=("input",),
    ignored=("user",),
)
_OLLAMA_COMMON: dict[str, Schema] = {"model": TEXT, "options": ANY_OBJECT, "keep_alive": KEEP_ALIVE}
_OLLAMA_TEXTS: Schema = {"anyOf": [TEXT, listing(TEXT, most=MAX_INPUTS)]}  # of none there are no vectors
OLLAMA_BODY = record(
    {**_OLLAMA_COMMON, "input": _OLLAMA_TEXTS, "truncate": BOOLEAN, "dimensions": _DIMENSIONS},
    required=("model",),
)
OLLAMA_ONE_BODY = record({**_OLLAMA_COMMON, "prompt": TEXT}, required=("model",))


async def create_embeddings(call: Call) -> Response:
    """Turn texts into vectors."""
    as_text = call.body.get("encoding_format") == "base64"

    def row(index: int, vector: NDArray[np.float32]) -> object:
        numbers = base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist()
        return {"object": "embedding", "index": index, "embedding": numbers}

    with await call.model(call.body.get("model")) as served:
        rows, tokens = await _embed(call, served, "input", row, truncating=False)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _answer({"object": "list", "model": served.name, "usage": usage}, "data", rows)


async def ollama_embed(call: Call) -> Response:
    """Turn texts into vectors; what does not fit the context is cut off, unless the request says otherwise."""
    with await acquire(call) as served:
        load_seconds = call.seconds
        rows, tokens = await _embed_if_asked(call, served, "input", truncating=call.body.get("truncate", True))
    times = {"total_duration": int(call.seconds * 1e9), "load_duration": int(load_seconds * 1e9)}
    return _answer({"model": served.name, **times, "prompt_eval_count": tokens}, "embeddings", rows)


async def ollama_embed_one(call: Call) -> Response:
    """Turn one text into a vector, in the older form of /api/embed."""
    with await acquire(call) as served:
        rows, _ = await _embed_if_asked(call, served, "prompt", truncating=True)
    return Response(b'{"embedding":%s}' % (rows[0] if rows else b"[]"), media_type=JsonAnswer.media_type)


async def _embed_if_asked(
    call: Call, served: LoadedModel, field: str, *, truncating: bool
) -> tuple[Sequence[bytes], int]:
    """Do what `_embed` does; without a text there is no vector: clients of Ollama load a model that way."""
    if not call.body.get(field):
        return [], 0
    return await _embed(call, served, field, lambda _index, vector: vector.tolist(), truncating=truncating)


def _answer(fields: Mapping[str, Any], name: str, rows: Sequence[bytes]) -> Response:
    """Return an answer whose field `name` is a list that is JSON already."""
    data = b'%s,"%s":[%s]}' % (to_json(fields)[:-1], name.encode(), b",".join(rows))
    return Response(data, media_type=JsonAnswer.media_type)


async def _embed(
    call: Call,
    served: LoadedModel,
    field: str,
    row: Callable[[int, NDArray[np.float32]], object],
    *,
    truncating: bool,
) -> tuple[Sequence[bytes], int]:
    """Return the rows of the texts in this field, as JSON, and how many tokens were read.

    row: what an answer has of a text's place and its vector.
    """
    language_model = served.model
    inputs = await call.in_thread(token_ids, language_model.tokenizer, call.body[field], field)
    pooling: Pooling = call.body.get("pooling", DEFAULT_POOLING)
    limit, vocab_size = language_model.context_length, language_model.config.vocab_size
    if truncating:
        inputs = [ids[:limit] for ids in inputs]
    for ids in inputs:
        if max(ids, default=0) >= vocab_size:
            raise TokenizerError(f"The input has token id {max(ids)}; the model's are 0 to {vocab_size - 1}.")

    def written(index: int) -> bytes:
        vector = embed(language_model, inputs[index], pooling)
        size = len(vector)
        if (wanted := call.body.get("dimensions", size)) != size:
            raise ApiError(400, f"dimensions is {wanted}; this model's embeddings have {size}.", param="dimensions")
        # In this thread: the JSON of 2,048 vectors of 768 takes 2 s, in which the event loop could read no request.
        return to_json(row(index, vector))

    async def rows() -> list[bytes]:
        # One after the other, and beside the engine: a step of its own would delay every running answer. Requests
        # take turns text by text, so that one text does not wait for 2,048 of another request.
        found = []
        for index in range(len(inputs)):
            async with served.scoring:
                call.check_reading(field)
                found.append(await asyncio.to_thread(written, index))
        return found

    return await unless_disconnected(call.request.receive, rows()), sum(map(len, inputs))
