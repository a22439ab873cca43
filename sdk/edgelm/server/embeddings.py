"""POST /v1/embeddings, /api/embed and /api/embeddings."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from edgelm.embedding import DEFAULT_POOLING, Pooling, embed
from edgelm.errors import TokenizerError
from edgelm.server.api_error import ApiError, client_left
from edgelm.server.endpoint import Call
from edgelm.server.ollama import without_tag
from edgelm.server.openai_completions import IDS, token_ids
from edgelm.server.schema import ANY, ANY_OBJECT, BOOLEAN, TEXT, Schema, choice, listing, record, whole
from edgelm.server.sse import JsonAnswer, unless_disconnected

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel
    from edgelm.server.model_pool import LoadedModel

MAX_INPUTS = 256
_TEXTS: Schema = {"anyOf": [TEXT, listing(TEXT, fewest=1, most=MAX_INPUTS)]}
_DIMENSIONS: Schema = whole(1)

BODY = record(
    {
        "model": TEXT,
        "input": {"anyOf": [*_TEXTS["anyOf"], IDS, listing(IDS, fewest=1, most=MAX_INPUTS)]},
        "encoding_format": choice("float", "base64"),
        "pooling": choice(*get_args(Pooling)),
        "dimensions": _DIMENSIONS,
    },
    required=("input",),
    ignored=("user",),
)
_OLLAMA_COMMON: dict[str, Schema] = {"model": TEXT, "options": ANY_OBJECT, "keep_alive": ANY}
OLLAMA_BODY = record(
    {**_OLLAMA_COMMON, "input": _TEXTS, "truncate": BOOLEAN, "dimensions": _DIMENSIONS}, required=("model", "input")
)
OLLAMA_ONE_BODY = record({**_OLLAMA_COMMON, "prompt": TEXT}, required=("model", "prompt"))


async def create_embeddings(call: Call) -> Response:
    """Turn texts into vectors."""
    served = await call.model(call.body.get("model"))
    vectors, tokens = await _embed(call, served, "input", truncating=False)
    as_text = call.body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JsonAnswer({"object": "list", "data": data, "model": served.name, "usage": usage})


async def ollama_embed(call: Call) -> Response:
    """Turn texts into vectors; what does not fit the context is cut off, unless the request says otherwise."""
    served = await call.model(without_tag(call.body["model"]))
    load_seconds = call.seconds
    vectors, tokens = await _embed(call, served, "input", truncating=call.body.get("truncate", True))
    return JsonAnswer(
        {
            "model": served.name,
            "embeddings": [vector.tolist() for vector in vectors],
            "total_duration": int(call.seconds * 1e9),
            "load_duration": int(load_seconds * 1e9),
            "prompt_eval_count": tokens,
        }
    )


async def ollama_embed_one(call: Call) -> Response:
    """Turn one text into a vector, in the older form of /api/embed."""
    served = await call.model(without_tag(call.body["model"]))
    (vector,), _ = await _embed(call, served, "prompt", truncating=True)
    return JsonAnswer({"embedding": vector.tolist()})


async def _vector(
    call: Call, model: LanguageModel, ids: Sequence[int], field: str, pooling: Pooling
) -> NDArray[np.float32]:
    call.check_reading(field)
    vector = await asyncio.to_thread(embed, model, ids, pooling)
    if (wanted := call.body.get("dimensions", len(vector))) != len(vector):
        raise ApiError(400, f"dimensions is {wanted}; this model's embeddings have {len(vector)}.", param="dimensions")
    return vector


async def _embed(
    call: Call, served: LoadedModel, field: str, *, truncating: bool
) -> tuple[Sequence[NDArray[np.float32]], int]:
    """Return the vectors of the texts in this field, and how many tokens were read; the model is released."""
    try:
        language_model = served.model
        inputs = await asyncio.to_thread(token_ids, language_model.tokenizer, call.body[field], field)
        pooling = call.body.get("pooling", DEFAULT_POOLING)
        limit, vocab_size = language_model.context_length, language_model.config.vocab_size
        if truncating:
            inputs = [ids[:limit] for ids in inputs]
        for ids in inputs:
            if max(ids, default=0) >= vocab_size:
                raise TokenizerError(f"The input has token id {max(ids)}; the model's are 0 to {vocab_size - 1}.")

        async def vectors() -> list[NDArray[np.float32]]:
            # One after the other, and beside the engine: a step of its own would delay every running answer.
            async with served.scoring:
                return [await _vector(call, language_model, ids, field, pooling) for ids in inputs]

        result = await unless_disconnected(call.request.receive, vectors())
        if result is None:
            raise client_left()
        return result, sum(map(len, inputs))
    finally:
        served.release()
