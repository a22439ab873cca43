"""The target of a request: a path, or a whole URL, as programs write it that are told of a proxy."""

from __future__ import annotations

from urllib.parse import unquote

from starlette.types import Scope


def in_origin_form(scope: Scope) -> Scope:
    """Return a request for a URL as one for the URL's path, with the URL's host in the place of its Host header.

    Source: RFC 9112, section 3.2.2.
    """
    scheme, separator, rest = scope["raw_path"].partition(b"://")
    if not separator or scheme.lower() != b"http":
        return scope
    authority, _, path = rest.partition(b"/")
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {
        **scope,
        "path": unquote("/" + path.decode("ascii")),
        "raw_path": b"/" + path,
        "headers": [(b"host", authority), *headers],
    }
