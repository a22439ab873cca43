"""GET /v1/models and /v1/models/{id}: what OpenAI's clients read of a model, and beside it what Anthropic's read."""

from __future__ import annotations

import datetime
from typing import Any

from starlette.responses import Response

from edgelm.package.package import Package
from edgelm.server.endpoint import Call
from edgelm.server.model_pool import context_of, reading_package
from edgelm.server.schema import BOOLEAN, TEXT, record
from edgelm.server.sse import JsonAnswer
from edgelm.text.chat_template import ChatTemplate

MODEL = record(
    {"id": TEXT, "object": TEXT, "created": {"type": "integer"}, "owned_by": TEXT},
    required=("id", "object"),
    open_ended=True,
)
MODELS = record(
    {
        "object": TEXT,
        "data": {"type": "array", "items": MODEL},
        "has_more": BOOLEAN,
        "first_id": TEXT,
        "last_id": TEXT,
    },
    required=("object", "data"),
)


async def list_models(call: Call) -> Response:
    """List the models that the server offers."""
    models = [_model(call, name, package) for name, package in call.pool.packages().items()]
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"]} if models else {}
    return JsonAnswer({"object": "list", "data": models, "has_more": False, **ends})


async def retrieve_model(call: Call) -> Response:
    """Describe one model."""
    name = call.pool.resolve(call.request.path_params["model"])
    with reading_package(name):
        package = call.pool.package(name)
        template = ChatTemplate.load(package.folder)
    variables = sorted(template.variables) if template is not None else []
    return JsonAnswer(_model(call, name, package) | {"template_variables": variables})


def _model(call: Call, name: str, package: Package) -> dict[str, Any]:
    modified, context_length = int(package.modified), context_of(package)
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "display_name": name,
        "lifecycle": "active",
        "created": modified,
        "created_at": datetime.datetime.fromtimestamp(modified, datetime.UTC).isoformat(),
        "owned_by": "edgelm",
        "context_length": context_length,
        "max_model_len": context_length,  # vLLM's name
        **dict.fromkeys(("max_input_tokens", "max_tokens"), context_length),  # Anthropic's
        "context_shift": call.options.context_shift,
        "precision": package.manifest.precision,
        "parent": call.pool.parent(name),
    }
