"""GET / and /page/…: the page, a chat in the browser. Its files are in the folder `page`; nothing else is ever read."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from starlette.responses import Response

from edgelm.server.api_error import ApiError
from edgelm.server.endpoint import Call

_FOLDER = Path(__file__).parent / "page"
_START = "index.html"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page loads its own files and calls its own server; no script or style stands in the HTML, and no other site may
# put the page into a frame.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asks each time, and is told 304 where nothing changed
}


async def start_page(call: Call) -> Response:
    """Show the page."""
    return _file(call, _START)


async def page_file(call: Call) -> Response:
    """Return a file of the page."""
    return _file(call, call.request.path_params["name"])


def _file(call: Call, name: str) -> Response:
    # A name is looked up among those of the folder, never made into a path.
    path = _files().get(name)
    if path is None:
        raise ApiError(404, f"The page has no file {name[:100]!r}.", code="not_found")
    content = path.read_bytes()
    headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    if call.request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_MEDIA_TYPES[path.suffix], headers=headers)


@functools.cache
def _files() -> dict[str, Path]:
    return {path.relative_to(_FOLDER).as_posix(): path for path in _FOLDER.rglob("*") if path.suffix in _MEDIA_TYPES}
