"""Download one file so that it arrives whole: resumable, checked, and named only when complete."""

from __future__ import annotations

import contextlib
import http.client
import os
import time
import urllib.error
from pathlib import Path
from typing import IO, Any

from edgelm.errors import DownloadError
from edgelm.files.atomic import rename
from edgelm.files.disk_space import require_space
from edgelm.library.piecewise import bytes_in_pieces, download_in_pieces
from edgelm.library.remote_file import (
    Progress,
    RemoteFile,
    explain,
    is_passing,
    open_range,
    read_block,
    retry_waits,
    starts_at,
    wait_after,
    whole_number,
)
from edgelm.package.manifest import sha256_of


def download(remote: RemoteFile, target: Path, progress: Progress | None = None, *, connections: int = 1) -> None:
    """Download `remote` to `target`, which gets its name when everything is there and checked.

    Until then the bytes are in `<target>.part`, or in `<target>.pieces` while several connections bring them, and a
    later call goes on from them. A dropped connection is tried again. Proxies and certificates are those of urllib
    (HTTP_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).

    connections: how many bring a large file at once, where its size and hash are known and the server gives ranges.

    Raises:
        DownloadError: the server refuses, the connection stays away, the disk is too full, or the file that came is
            not the one that was asked for (then the part is deleted).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(remote, target, progress)
    if not transfer.received:  # a part that one connection began, one connection ends
        download_in_pieces(remote, target, transfer.part, progress, connections)
    waits = retry_waits()
    while not transfer.is_complete():
        before = transfer.received
        try:
            transfer.attempt()
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            problem = explain(error, remote, target)
            if transfer.received > before:
                waits = retry_waits()
            wait = next(waits, None)
            if not is_passing(error) or wait is None:
                raise problem from error
            time.sleep(wait_after(error, wait))
    transfer.finish()


def missing_bytes(remote: RemoteFile, target: Path) -> int:
    """Return how many bytes `download` has still to bring; 0 where the size is unknown."""
    if remote.size is None or target.exists():
        return 0
    here = _Transfer(remote, target, None).received or bytes_in_pieces(remote, target)
    return max(0, remote.size - here)


class _Transfer:
    """The part file of one download."""

    def __init__(self, remote: RemoteFile, target: Path, progress: Progress | None) -> None:
        self._remote, self._target, self._progress = remote, target, progress
        self.part = target.with_name(f"{target.name}.part")
        # The version of the file that the part belongs to, as the server names it.
        self._etag = target.with_name(f"{target.name}.part.etag")
        self._total = remote.size

    @property
    def received(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def is_complete(self) -> bool:
        return self._total is not None and self.received == self._total

    def attempt(self) -> None:
        """Ask for what is missing and write it until the connection ends, however it ends."""
        start = self.received
        with contextlib.closing(self._open(start)) as response:
            if not starts_at(response, start):  # this server does not resume, or has another version of the file by now
                self.part.unlink(missing_ok=True)
                start = 0
            header = response.headers.get("Content-Length")
            length = whole_number(header)
            if length is None and header is not None:
                raise http.client.HTTPException(f"the server's Content-Length is {header!r:.40}")
            announced = None if length is None else start + length
            self._check_size(announced)
            self._remember_version(response.headers.get("ETag"))
            require_space(self._target.parent, (self._total or start) - start, self._target.name)
            with self.part.open("ab") as file:
                self._receive(response, file, start)
        if self._total is not None and self.received > self._total:
            self._refuse(f"more than the expected {self._total} bytes came")
        if self._total is None:
            self._total = self.received  # the end of the connection is the end of the file
        elif self.received < self._total:
            raise ConnectionResetError(f"the connection ended after {self.received} of {self._total} bytes")

    def _open(self, start: int) -> Any:
        version = self._kept_version() if start else None
        may_resume = version or self._remote.sha256
        try:
            return open_range(self._remote, start if may_resume else 0, version=version)
        except urllib.error.HTTPError as error:
            if not start or error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            error.close()
            return self._open(0)  # the part is longer than the file is now

    def _receive(self, response: Any, file: IO[bytes], received: int) -> None:
        while (self._total is None or received <= self._total) and (block := read_block(response)):
            file.write(block)
            received += len(block)
            if self._progress is not None:
                self._progress(self._target.name, received, self._total)

    def _check_size(self, announced: int | None) -> None:
        expected = self._remote.size
        if announced is not None and expected is not None and announced != expected:
            self._refuse(f"the server has {announced} bytes; {expected} were expected")
        self._total = expected if announced is None else announced

    def _kept_version(self) -> str | None:
        """Return the version that the part was begun with; None where it is not known, or the disk has damaged it."""
        try:
            version = self._etag.read_text(encoding="latin-1")  # as headers are written
        except FileNotFoundError:
            return None
        return version if version.isprintable() else None

    def _remember_version(self, etag: str | None) -> None:
        if etag is None or etag.startswith("W/"):  # If-Range takes strong ones only (RFC 9110, section 13.1.5)
            self._etag.unlink(missing_ok=True)
        else:
            self._etag.write_text(etag, encoding="latin-1")

    def _refuse(self, reason: str) -> None:
        self.part.unlink(missing_ok=True)
        self._etag.unlink(missing_ok=True)
        raise DownloadError(
            f"{self._target.name} is not the file that was asked for: {reason}. The part was deleted; "
            f"try again, and if it happens again, do not trust {self._remote.url}"
        )

    def finish(self) -> None:
        """Check the whole file and give it its name."""
        self.part.touch()  # a file without content has no part yet
        if self._remote.sha256 is not None:
            found = sha256_of(self.part)
            if found != self._remote.sha256:
                self._refuse(f"its SHA-256 is {found}; {self._remote.sha256} was expected")
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())
        rename(self.part, self._target)
        self._etag.unlink(missing_ok=True)
