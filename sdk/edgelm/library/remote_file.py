"""A file on a server: how to ask for it or a part of it, which failures pass, and what the others mean."""

from __future__ import annotations

import functools
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from edgelm._version import __version__
from edgelm.errors import DownloadError

# Called with the file's name, the bytes that are here, and the bytes of the whole file where the server says so.
Progress = Callable[[str, int, int | None], None]

_BLOCK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 30.0
# Waits between attempts that bring nothing; an attempt that brings bytes starts the series anew.
_RETRY_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
_RETRY_STATUSES = (408, 429, 500, 502, 503, 504)
# Seconds that a server may ask to wait (Retry-After); somebody may be watching.
_LONGEST_WAIT = 60.0


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """What to download, and what it must be.

    size, sha256: None where unknown; then they are not checked. headers: sent to this server, also where it redirects
    to itself, and to no other. advice: HTTP status -> the way out, which the error of that status ends with.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[int, str] = field(default_factory=dict)


def open_range(remote: RemoteFile, first: int = 0, last: int | None = None, *, version: str | None = None) -> Any:
    """Ask for the bytes from `first` to `last` (None: the end), or for the whole file where those are all of it.

    version: the strong ETag that the file must still have; a server that has another sends the whole file.

    Raises:
        OSError, http.client.HTTPException: the server cannot be reached, refuses, or answers what is no HTTP.
    """
    request = urllib.request.Request(remote.url, headers={"User-Agent": f"edgelm/{__version__}"})
    # Without content encoding the bytes on the wire are those of the file, and ranges mean the same to both sides.
    request.add_header("Accept-Encoding", "identity")
    for name, value in remote.headers.items():
        request.add_unredirected_header(name, value)
    if first or last is not None:
        request.add_header("Range", f"bytes={first}-{'' if last is None else last}")
        if version:
            request.add_header("If-Range", version)
    try:
        return _opener().open(request, timeout=_TIMEOUT_SECONDS)
    except ValueError as error:  # of an address that it redirects to
        raise urllib.error.URLError(f"the server's answer cannot be followed: {error}") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a server to addresses of the web, and show a token to that server alone.

    urllib would also ask one of FTP, whose answer it reads without end. And to no redirect would it show the token, but
    the hub redirects within itself: to the new name of a repository, which may be private.
    """

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not newurl.lower().startswith(("http://", "https://")):
            raise urllib.error.HTTPError(req.full_url, code, f"{msg}, to {newurl:.80}", headers, fp)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _server(newurl) == _server(req.full_url):
            request.unredirected_hdrs.update(req.unredirected_hdrs)
        return request


def _server(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)


def whole_number(text: str | None) -> int | None:
    """Read a number of a header; None where it is missing, or no number of bytes or seconds."""
    return int(text) if text is not None and re.fullmatch("[0-9]{1,20}", text) else None


def read_block(response: Any) -> bytes:
    """Read what has come, up to a block; empty at the end.

    Raises:
        ConnectionError: the connection broke.
    """
    try:
        return bytes(response.read(_BLOCK_BYTES))
    except OSError as error:  # also ssl.SSLError; told apart here from an error of the disk
        raise ConnectionError(str(error)) from error


def starts_at(response: Any, first: int) -> bool:
    """Tell whether a response is the part of the file from byte `first` on: `Content-Range: bytes 100-199/200`."""
    start = str(response.headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0]
    return response.status == http.client.PARTIAL_CONTENT and whole_number(start) == first


def is_passing(error: Exception) -> bool:
    """Tell whether another attempt may succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _RETRY_STATUSES
    if isinstance(error, urllib.error.URLError):
        return isinstance(error.reason, (TimeoutError, ConnectionError))
    return isinstance(error, (http.client.HTTPException, TimeoutError, ConnectionError))


def retry_waits() -> Iterator[float]:
    """Return the seconds to wait after each of several failures in turn; at its end it is time to give up."""
    return iter(_RETRY_WAITS)


def wait_after(error: Exception, planned: float) -> float:
    """Return the seconds until the next attempt: what the server asks for (Retry-After), else what was planned."""
    asked = whole_number(error.headers.get("Retry-After")) if isinstance(error, urllib.error.HTTPError) else None
    return planned if asked is None else min(max(planned, asked), _LONGEST_WAIT)


def explain(error: Exception, remote: RemoteFile, target: Path) -> DownloadError:
    """Say what a failure means, and what to do."""
    if isinstance(error, urllib.error.HTTPError):
        advice = remote.advice.get(error.code, "Try again later.")
        return DownloadError(
            f"Cannot download {target.name}: {remote.url} answers {error.code} {error.reason}. {advice}"
        )
    if isinstance(error, (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)):
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return DownloadError(
            f"Cannot download {target.name} from {remote.url}: {reason}. Check the network (and HTTPS_PROXY, "
            "SSL_CERT_FILE where you need them) and run the same command again: it goes on where it stopped."
        )
    return DownloadError(f"Cannot write {target}: {error}.")
