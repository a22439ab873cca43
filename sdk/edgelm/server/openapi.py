"""GET /openapi.json: a description of the server, made from the tables that route and check its requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from edgelm._version import __version__
from edgelm.server.api_error import protocol_of
from edgelm.server.endpoint import Call, Endpoint
from edgelm.server.schema import TEXT, Schema
from edgelm.server.sse import JsonAnswer


def _object(fields: Mapping[str, Schema]) -> Schema:
    """Describe an object that has all of these fields."""
    return {"type": "object", "properties": fields, "required": list(fields)}


_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_ERRORS: Mapping[str, Schema] = {
    "openai": _object(
        {"error": _object({"message": TEXT, "type": TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL})}
    ),
    "ollama": _object({"error": TEXT}),
    "anthropic": _object({"type": TEXT, "error": _object({"type": TEXT, "message": TEXT})}),
}
_REFUSALS = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503)


async def describe(_call: Call) -> Response:
    """Describe all endpoints, as OpenAPI 3.1 defines it."""
    # Imported here: the table of routes has this function in it.
    from edgelm.server.routes import ROUTES

    paths: dict[str, dict[str, Any]] = {}
    for row in ROUTES:
        paths.setdefault(row.path.replace(":path}", "}"), {})[row.method.lower()] = _operation(row)
    return JsonAnswer(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "edgelm",
                "version": __version__,
                "description": "Language models on this machine, in the protocols of OpenAI, Anthropic and Ollama.",
            },
            "paths": paths,
            "components": {
                "securitySchemes": {
                    "key": {"type": "http", "scheme": "bearer"},
                    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                }
            },
        }
    )


def _operation(row: Endpoint) -> dict[str, Any]:
    error = {"application/json": {"schema": _ERRORS[protocol_of(row.path)]}}
    operation: dict[str, Any] = {
        "summary": row.summary,
        "operationId": row.answer.__name__,
        "responses": {
            "200": {"description": "The answer.", "content": _content(row)},
            **{str(status): {"description": "A refusal.", "content": error} for status in _REFUSALS},
        },
        "security": [] if row.public else [{}, {"key": []}, {"x-api-key": []}],
    }
    if row.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": published(row.body)}},
        }
    names = re.findall(r"{(\w+)", row.path)
    if names:
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]
    return operation


def _content(row: Endpoint) -> dict[str, Any]:
    if row.answers is None:
        return {row.media: {"schema": TEXT}}
    content: dict[str, Any] = {"application/json": {"schema": published(row.answers)}}
    if row.body is not None and "stream" in row.body["properties"]:
        stream = "application/x-ndjson" if protocol_of(row.path) == "ollama" else "text/event-stream"
        content[stream] = {"schema": TEXT}
    return content


def published(schema: Schema) -> dict[str, Any]:
    """Return a schema as others read it: what may be null says so, what is refused is described."""
    shown: dict[str, Any] = {name: value for name, value in schema.items() if name != "x-refused"}
    if schema.get("x-refused"):
        refused = "; ".join(f"{name}: {why}" for name, why in schema["x-refused"].items())
        shown["description"] = f"Refused: {refused}"
    if "anyOf" in shown:
        shown["anyOf"] = [published(item) for item in shown["anyOf"]]
    if "items" in shown:
        shown["items"] = published(shown["items"])
    if isinstance(shown.get("additionalProperties"), dict):
        shown["additionalProperties"] = published(shown["additionalProperties"])
    if "properties" in shown:
        required = shown.get("required", ())
        shown["properties"] = {
            name: published(item) if name in required or not item else {"anyOf": [published(item), {"type": "null"}]}
            for name, item in shown["properties"].items()
        }
    return shown
