"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from edgelm.package.manifest import Manifest
from edgelm.server.endpoint import Call
from edgelm.server.model_pool import reading_package
from edgelm.server.schema import TEXT, record
from edgelm.server.sse import JsonAnswer
from edgelm.text.chat_template import ChatTemplate

MODEL = record(
    {"id": TEXT, "object": TEXT, "created": {"type": "integer"}, "owned_by": TEXT},
    required=("id", "object"),
    open_ended=True,
)
MODELS = record({"object": TEXT, "data": {"type": "array", "items": MODEL}}, required=("object", "data"))


async def list_models(call: Call) -> Response:
    """List the models that the server offers."""
    return JsonAnswer({"object": "list", "data": [_model(call, *row) for row in call.pool.manifests().items()]})


async def retrieve_model(call: Call) -> Response:
    """Describe one model."""
    name = call.pool.resolve(call.request.path_params["model"])
    model = _model(call, name, call.pool.manifest(name))
    with reading_package(name):
        template = ChatTemplate.load(call.pool.package(name).folder)
    return JsonAnswer(model | {"template_variables": sorted(template.variables) if template is not None else []})


def _model(call: Call, name: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(call.pool.modified(name)),
        "owned_by": "edgelm",
        "context_length": manifest.context_length,
        "precision": manifest.precision,
        "parent": call.pool.parent(name),
    }
