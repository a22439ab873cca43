"""Ollama's lists of models: /api/tags, /api/ps, /api/show, /api/pull and /api/version."""

from __future__ import annotations

import datetime
import logging
from typing import Any

from starlette.responses import Response

from edgelm._version import __version__
from edgelm.errors import EdgeLMError
from edgelm.library.library import TAG
from edgelm.package.package import Package
from edgelm.server.api_error import ApiError
from edgelm.server.endpoint import Call
from edgelm.server.keep_alive import LONGEST
from edgelm.server.model_pool import reading_package
from edgelm.server.schema import BOOLEAN, TEXT, record
from edgelm.server.sse import JsonAnswer, line
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.thinking import knows_thinking

logger = logging.getLogger("edgelm.server")

# The version of Ollama whose protocol this is: its clients ask for it, and some refuse an older one than they need.
_PROTOCOL_VERSION = "0.13.4"
SHOW_BODY = record(
    {"model": TEXT, "name": TEXT, "verbose": BOOLEAN},
    refused=dict.fromkeys(("system", "template", "options"), "a model is shown as it is."),
)
PULL_BODY = record({"model": TEXT, "name": TEXT, "stream": BOOLEAN}, ignored=("insecure", "username", "password"))


async def list_tags(call: Call) -> Response:
    """List the models."""
    packages = call.pool.packages()
    return JsonAnswer({"models": [_description(call, name, package) for name, package in packages.items()]})


async def list_running(call: Call) -> Response:
    """List the models in memory."""
    now = datetime.datetime.now(datetime.UTC)
    rows = []
    packages = call.pool.packages()
    for loaded in call.pool.loaded():
        if loaded.name not in packages:  # it was removed just now
            continue
        left = LONGEST if loaded.keep_alive is None else loaded.keep_alive - loaded.idle_seconds
        expires = now + datetime.timedelta(seconds=min(left, LONGEST))
        context = loaded.context_length
        more = {"expires_at": expires.isoformat(), "size_vram": 0, "context_length": context}
        rows.append(_description(call, loaded.name, packages[loaded.name]) | more)
    return JsonAnswer({"models": rows})


async def show(call: Call) -> Response:
    """Describe one model."""
    name = _resolve(call)
    with reading_package(name):
        package = call.pool.package(name)
        config, template = package.config(), ChatTemplate.load(package.folder)
    description = _description(call, name, package)
    manifest, family = package.manifest, package.manifest.architecture
    capabilities = ["completion", *(["tools"] if template is not None else [])]
    return JsonAnswer(
        {
            "modelfile": "",
            "parameters": "",
            "template": template.source if template is not None else "",
            "license": manifest.license or "",
            "modified_at": description["modified_at"],
            "details": description["details"],
            "model_info": {
                "general.architecture": family,
                "general.basename": manifest.name,
                "general.parameter_count": _parameters(package),
                f"{family}.context_length": manifest.context_length,
                f"{family}.embedding_length": config.hidden_size,
                f"{family}.block_count": config.num_hidden_layers,
                f"{family}.vocab_size": config.vocab_size,
            },
            "capabilities": [*capabilities, "thinking"] if knows_thinking(template) else capabilities,
        }
    )


async def pull(call: Call) -> Response:
    """Say that a model is here: clients pull one that they do not find in the list under the name that they were given.

    Nothing is fetched.
    """
    _resolve(call)
    return Response(line({"status": "success"}), media_type=JsonAnswer.media_type)


async def version(_call: Call) -> Response:
    """Say which version of Ollama's protocol this is, and which of edgelm."""
    return JsonAnswer({"version": _PROTOCOL_VERSION, "edgelm": __version__})


def _resolve(call: Call) -> str:
    name = call.body.get("model") or call.body.get("name")
    if not name:
        raise ApiError(400, "model is missing.", param="model")
    return call.pool.resolve(name)


def _description(call: Call, name: str, package: Package) -> dict[str, Any]:
    manifest, tagged = package.manifest, f"{name}{TAG}"
    modified = datetime.datetime.fromtimestamp(package.modified, datetime.UTC)
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": modified.isoformat(),
        "size": manifest.size,
        "digest": call.pool.digest(name, package),
        "details": {
            "parent_model": "",
            "format": "onnx",
            "family": manifest.architecture,
            "families": [manifest.architecture],
            "parameter_size": _in_millions(_parameters(package)),
            "quantization_level": manifest.precision,
        },
    }


def _parameters(package: Package) -> int | None:
    """Count the numbers that a model has learned; None where its files do not tell all of its features."""
    if package.foreign_graph is not None:
        return None
    try:
        return package.config().count_parameters()
    except EdgeLMError as error:  # a broken package must not hide the others
        logger.error("%s", error)
        return None


def _in_millions(count: int | None) -> str:
    """Write a number of parameters as Ollama does: 134.52M, 1.71B."""
    if count is None:
        return ""
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
