"""What other servers have at a path, and what does the same here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgelm.server.routes import ROUTES

_PREFIXES = re.compile(r"(/(v\d+|api|openai|anthropic)(?=/))*")
_OURS = {
    _PREFIXES.sub("", row.path, count=1): f"that is {row.method} {row.path}"
    for row in reversed(ROUTES)  # so that the first row of a name stays
    if "{" not in row.path and row.path != "/"
}
_HERE = "on this server's machine"
_ONE_BY_ONE = "nothing is stored: each request has its whole conversation"
_NO_RANKS = "no model ranks texts; POST /v1/embeddings gives vectors to compare"
_ONLY_TEXT = "models read and write only text"
# A path of Ollama's, llama.cpp's, vLLM's or OpenAI's, without what stands before it -> what to do here.
_THEIRS: Mapping[str, str] = {
    "/apply-template": "POST /tokenize encodes a conversation as it is read, and POST /detokenize shows it",
    "/assistants": _ONE_BY_ONE,
    "/audio": _ONLY_TEXT,
    "/blobs": f"that is `edgelm pull` or `edgelm export`, {_HERE}",
    "/completion": _OURS["/completions"],
    "/conversations": _ONE_BY_ONE,
    "/copy": f"that is `edgelm alias`, {_HERE}",
    "/create": f"that is `edgelm export`, {_HERE}",
    "/delete": f"that is `edgelm rm`, {_HERE}",
    "/embedding": _OURS["/embeddings"],
    "/images": _ONLY_TEXT,
    "/infill": f"{_OURS['/completions']} with a suffix",
    "/load_lora_adapter": "an adapter is a model of its own, which `edgelm serve --adapter` adds",
    "/lora-adapters": "an adapter is a model of its own, which `edgelm serve --adapter` adds",
    "/models/load": "the first request for a model loads it",
    "/models/unload": 'a request to POST /api/generate with "keep_alive": 0 unloads a model',
    "/props": "that is GET /v1/models/{model}",
    "/push": f"that is `edgelm push`, {_HERE}",
    "/rerank": _NO_RANKS,
    "/reranking": _NO_RANKS,
    "/responses": _ONE_BY_ONE,
    "/score": _NO_RANKS,
    "/slots": _OURS["/metrics"],
    "/threads": _ONE_BY_ONE,
}


def nothing_at(path: str) -> str:
    """Say that there is nothing at a path, and what does here what other servers have there."""
    name = _PREFIXES.sub("", path.rstrip("/"), count=1)
    theirs = next((words for row, words in _THEIRS.items() if name == row or name.startswith(f"{row}/")), None)
    if (words := _OURS.get(name, theirs)) is not None:
        return f"There is nothing at {path[:100]!r}. Here {words}."
    return (
        f"There is nothing at {path[:100]!r}. /openapi.json has all paths; "
        "OpenAI's and Anthropic's begin with /v1, Ollama's with /api."
    )
