"""GET / and /page/…: the page, a chat in the browser. Its files are in the folder `page`; nothing else is ever read."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePath

from starlette.responses import Response

from edgelm.server.api_error import ApiError
from edgelm.server.endpoint import Call

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
    file = _files().get(name)
    if file is None:
        raise ApiError(404, f"The page has no file {name[:100]!r}.", code="not_found")
    content = file.read_bytes()
    headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    if call.request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_MEDIA_TYPES[PurePath(name).suffix], headers=headers)


@functools.cache
def _files() -> dict[str, Traversable]:
    return dict(_files_below(files("edgelm.server") / "page"))


def _files_below(folder: Traversable, path: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():  # also where edgelm was imported from a zip
        if entry.is_dir():
            yield from _files_below(entry, f"{path}{entry.name}/")
        elif PurePath(entry.name).suffix in _MEDIA_TYPES:
            yield path + entry.name, entry
