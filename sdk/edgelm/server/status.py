"""GET /health and /metrics: how the server is."""

from __future__ import annotations

from starlette.responses import Response

from edgelm._version import __version__
from edgelm.server.endpoint import Call
from edgelm.server.schema import TEXT, record
from edgelm.server.sse import JsonAnswer

HEALTH = record({"status": TEXT, "version": TEXT}, required=("status",))


async def health(_call: Call) -> Response:
    """Say that the server takes requests."""
    return JsonAnswer({"status": "ok", "version": __version__})


async def metrics(call: Call) -> Response:
    """Write all figures for Prometheus."""
    return Response(call.metrics.render(call.pool.loaded()), media_type="text/plain; version=0.0.4")
