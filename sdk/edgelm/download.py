"""Download one file so that it arrives whole: resumable, checked, and named only when complete."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgelm._version import __version__
from edgelm.errors import DownloadError
from edgelm.manifest import sha256_of

# Called with the file's name, the bytes that are here, and the bytes of the whole file where the server says so.
Progress = Callable[[str, int, int | None], None]

_BLOCK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 30.0
# Waits between attempts that bring nothing; an attempt that brings bytes starts the series anew.
_RETRY_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
_RETRY_STATUSES = (408, 429, 500, 502, 503, 504)
# Left free beside the file: a disk filled to the last byte breaks other programs.
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """What to download, and what it must be.

    size, sha256: None where unknown; then they are not checked. headers: sent to this server, not to one that it
    redirects to. advice: HTTP status -> the way out, which the error of that status ends with.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    advice: Mapping[int, str] = field(default_factory=dict)


def download(remote: RemoteFile, target: Path, progress: Progress | None = None) -> None:
    """Download `remote` to `target`, which gets its name when everything is there and checked.

    Until then the bytes are in `<target>.part`, and a later call goes on from them. A dropped connection is tried
    again. Proxies and certificates are those of urllib (HTTP_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).

    Raises:
        DownloadError: the server refuses, the connection stays away, the disk is too full, or the file that came is
            not the one that was asked for (then the part is deleted).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(remote, target, progress)
    waits = iter(_RETRY_WAITS)
    while not transfer.is_complete():
        before = transfer.received
        try:
            transfer.attempt()
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            problem = _explain(error, remote, target)
            if transfer.received > before:
                waits = iter(_RETRY_WAITS)
            wait = next(waits, None)
            if not _is_passing(error) or wait is None:
                raise problem from error
            time.sleep(wait)
    transfer.finish()


class _Transfer:
    """The part file of one download."""

    def __init__(self, remote: RemoteFile, target: Path, progress: Progress | None) -> None:
        self._remote, self._target, self._progress = remote, target, progress
        self._part = target.with_name(f"{target.name}.part")
        # The version of the file that the part belongs to, as the server names it.
        self._etag = target.with_name(f"{target.name}.part.etag")
        self._total = remote.size

    @property
    def received(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def is_complete(self) -> bool:
        return self._total is not None and self.received == self._total

    def attempt(self) -> None:
        """Ask for what is missing and write it until the connection ends, however it ends."""
        start = self.received
        with contextlib.closing(self._open(start)) as response:
            resumed = response.status == http.client.PARTIAL_CONTENT and _range_start(response) == start
            if not resumed:  # this server does not resume, or has another version of the file by now
                self._part.unlink(missing_ok=True)
                start = 0
            length = response.headers.get("Content-Length")
            announced = None if length is None else start + int(length)
            self._check_size(announced)
            self._remember_version(response.headers.get("ETag"))
            check_space(self._target, (self._total or start) - start)
            with self._part.open("ab") as file:
                self._receive(response, file, start)
        if self._total is not None and self.received > self._total:
            self._refuse(f"more than the expected {self._total} bytes came")
        if announced is None:
            self._total = self.received  # the end of the connection is the end of the file
        elif self.received < announced:
            raise ConnectionResetError(f"the connection ended after {self.received} of {announced} bytes")

    def _open(self, start: int) -> Any:
        request = urllib.request.Request(self._remote.url, headers={"User-Agent": f"edgelm/{__version__}"})
        # Without content encoding the bytes on the wire are those of the file, and ranges mean the same to both sides.
        request.add_header("Accept-Encoding", "identity")
        for name, value in self._remote.headers.items():
            request.add_unredirected_header(name, value)
        if start:
            version = self._etag.read_text(encoding="utf-8") if self._etag.exists() else None
            if version or self._remote.sha256:
                request.add_header("Range", f"bytes={start}-")
            if version:
                request.add_header("If-Range", version)
        try:
            return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            error.close()
            self._part.unlink()  # longer than the file is now
            return self._open(0)

    def _receive(self, response: Any, file: IO[bytes], received: int) -> None:
        while (self._total is None or received <= self._total) and (block := _read(response)):
            file.write(block)
            received += len(block)
            if self._progress is not None:
                self._progress(self._target.name, received, self._total)

    def _check_size(self, announced: int | None) -> None:
        expected = self._remote.size
        if announced is not None and expected is not None and announced != expected:
            self._refuse(f"the server has {announced} bytes; {expected} were expected")
        self._total = expected if announced is None else announced

    def _remember_version(self, etag: str | None) -> None:
        if etag is None or etag.startswith("W/"):  # If-Range takes strong ones only (RFC 9110, section 13.1.5)
            self._etag.unlink(missing_ok=True)
        else:
            self._etag.write_text(etag, encoding="utf-8")

    def _refuse(self, reason: str) -> None:
        self._part.unlink(missing_ok=True)
        self._etag.unlink(missing_ok=True)
        raise DownloadError(
            f"{self._target.name} is not the file that was asked for: {reason}. The part was deleted; "
            f"try again, and if it happens again, do not trust {self._remote.url}"
        )

    def finish(self) -> None:
        """Check the whole file and give it its name."""
        self._part.touch()  # a file without content has no part yet
        if self._remote.sha256 is not None:
            found = sha256_of(self._part)
            if found != self._remote.sha256:
                self._refuse(f"its SHA-256 is {found}; {self._remote.sha256} was expected")
        with self._part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(self._part, self._target)
        self._etag.unlink(missing_ok=True)


def check_space(target: Path, missing: int) -> None:
    """Check that the disk has room for the `missing` bytes of a file, before the first of them is written.

    Raises:
        DownloadError: it has not.
    """
    free = shutil.disk_usage(target.parent).free
    if missing + _SPARE_BYTES > free:
        raise DownloadError(
            f"{target.name} needs {missing / 1e6:.0f} MB more; only {free / 1e6:.0f} MB are free at {target.parent}. "
            "Make room, or set EDGELM_HOME to a folder on another disk."
        )


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read(_BLOCK_BYTES))
    except OSError as error:  # also ssl.SSLError; told apart here from an error of the disk
        raise ConnectionError(str(error)) from error


def _range_start(response: Any) -> int | None:
    """Read the first byte's position from `Content-Range: bytes 100-199/200`."""
    first = str(response.headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None


def _is_passing(error: Exception) -> bool:
    """Tell whether another attempt may succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _RETRY_STATUSES
    if isinstance(error, urllib.error.URLError):
        return isinstance(error.reason, (TimeoutError, ConnectionError))
    return isinstance(error, (http.client.HTTPException, TimeoutError, ConnectionError))


def _explain(error: Exception, remote: RemoteFile, target: Path) -> DownloadError:
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
