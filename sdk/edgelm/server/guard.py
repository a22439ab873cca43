"""Guard: who may call. It stands before every route, and looks at the head of a request alone.

A page on another site can make its visitor's browser send requests to this machine. It can neither choose their Host
(DNS rebinding gives its own name away) nor leave out their Origin; both are checked, also where no key is set. What has
no Origin, such as the request for a picture, says in Sec-Fetch-Site whether another site made it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping

from starlette.datastructures import Headers

from edgelm.server.api_error import RETRY_LATER, ApiError
from edgelm.server.options import ServerOptions

_HTTP_PORT = 80
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_OTHER_SITES = ("cross-site", "same-site")
_CLOSE = {"Connection": "close"}


def check_framing(headers: Headers) -> None:
    """Check that a request states its length in one way: with two, a proxy could read it otherwise than this server.

    Source: RFC 9112, section 6.1.

    Raises:
        ApiError: 400, it has a length and is in chunks.
    """
    if "content-length" in headers and "transfer-encoding" in headers:
        raise ApiError(400, "The request has Content-Length and Transfer-Encoding; send one of them.", headers=_CLOSE)


def check_host(headers: Headers, address: tuple[str, int], options: ServerOptions) -> str:
    """Return the Host header, if it names this server.

    address: where the connection came in. Its port has to be the header's, unless an allowed host says otherwise.

    Raises:
        ApiError: 403, it is missing, doubled, or names another.
    """
    values = headers.getlist("host")
    host = values[0].strip().lower() if len(values) == 1 else ""
    ip, port = address
    names = {*_LOCAL_NAMES, options.host.lower(), *_names_of(ip)}
    allowed = {f"{name}:{port}" for name in names} | {name.lower() for name in options.allowed_hosts}
    if port == _HTTP_PORT:
        allowed |= names
    if host not in allowed:
        wrong = f"The Host {host[:80]!r} is not this server's. If it is meant to be, start it with --allowed-host."
        if len(values) != 1:
            wrong = f"The request has {len(values) or 'no'} Host headers; send one."
        raise _forbidden(wrong, "host_not_allowed")
    return host


def check_origin(headers: Headers, host: str, options: ServerOptions) -> str | None:
    """Return the origin of another site that may call, None for a request of no other site.

    Raises:
        ApiError: 403, a page of another site sent it.
    """
    origins = headers.getlist("origin")
    # Where a proxy that speaks TLS passes a name on, our page comes from it by https.
    schemes = ("http", "https") if host in map(str.lower, options.allowed_hosts) else ("http",)
    if not origins or (len(origins) == 1 and origins[0].lower() in {f"{scheme}://{host}" for scheme in schemes}):
        return None
    if len(origins) == 1 and origins[0] in options.cors_origins:
        return origins[0]
    raise _forbidden(
        f"Pages of {', '.join(origins)[:80]!r} may not call this server. "
        "If they are meant to, start it with --cors-origin.",
        "origin_not_allowed",
    )


def check_site(headers: Headers) -> None:
    """Check that no page of another site made a browser ask, unless `check_origin` has let its origin pass.

    A page's pictures, scripts and frames have no Origin, and asking is enough to have a model loaded. Browsers say it
    of what they send to this machine, and of https alone elsewhere. Source: W3C, Fetch Metadata Request Headers.

    Raises:
        ApiError: 403, one did.
    """
    if "origin" not in headers and headers.get("sec-fetch-site") in _OTHER_SITES:
        raise _forbidden(
            "A page of another site asked for this. If you did, open the address by itself; if that site's pages are "
            "meant to call this server, start it with --cors-origin.",
            "site_not_allowed",
        )


def check_key(headers: Headers, options: ServerOptions) -> str:
    """Return the key of a request, which is checked in constant time where the server has keys.

    Raises:
        ApiError: 401, there is none, or it is none of them.
    """
    if not options.api_keys:
        return headers.get("authorization") or headers.get("x-api-key", "")
    scheme, _, key = headers.get("authorization", "").partition(" ")
    given = [_digest(key.strip() if scheme.lower() == "bearer" else ""), _digest(headers.get("x-api-key", ""))]
    # All are compared, so that the time tells neither how much of one was right nor which one.
    fitting = [known for known in options.api_keys for one in given if hmac.compare_digest(one, _digest(known))]
    if not fitting:
        raise ApiError(
            401,
            "This server needs its key, as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return fitting[0]


def refuse_while_draining() -> ApiError:
    """Return what a request is told while the server stops."""
    return ApiError(
        503,
        "The server is stopping; it takes no new requests.",
        code="stopping",
        headers={**RETRY_LATER, **_CLOSE},
    )


def cors_headers(origin: str) -> dict[str, str]:
    """Return the headers that let a page of `origin` read the answer."""
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin", "Access-Control-Expose-Headers": "Retry-After"}


def preflight_headers(origin: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return the answer to the question a browser asks before it sends a page's request."""
    return cors_headers(origin) | {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
        "Access-Control-Allow-Private-Network": "true",
        "Access-Control-Max-Age": "600",
    }


def _forbidden(message: str, code: str) -> ApiError:
    return ApiError(403, message, code=code, headers=_CLOSE)


def _names_of(ip: str) -> set[str]:
    if ":" not in ip:
        return {ip}
    mapped = ipaddress.IPv6Address(ip).ipv4_mapped  # who comes by IPv4 where the server listens at ::
    return {f"[{ip}]"} if mapped is None else {f"[{ip}]", str(mapped)}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
