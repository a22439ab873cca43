"""Bring one large file over several connections, each fetching one piece after the other."""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import threading
import urllib.error
from collections import deque
from pathlib import Path
from typing import IO

from edgelm.files.atomic import rename
from edgelm.files.disk_space import require_space
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
)

# Small enough that a kill loses seconds, large enough that asking for each costs little.
_PIECE_BYTES = 1 << 24
_POLL_SECONDS = 0.2
PIECES_SUFFIX = ".pieces"


def download_in_pieces(
    remote: RemoteFile, target: Path, part: Path, progress: Progress | None, connections: int
) -> None:
    """Bring the bytes of `remote` into the file `part`, over several connections; their hash is the caller's to check.

    Does nothing for a small file, for one of unknown size or hash, and where the server gives no ranges; nor over one
    connection, unless it goes on from the pieces of an earlier call.

    Raises:
        DownloadError: the server refuses, the connections stay away, or the disk is too full.
    """
    if remote.size is None or remote.sha256 is None or remote.size < 2 * _PIECE_BYTES:
        return
    pieces = _Pieces(remote, target)
    if connections < 2 and not pieces.received:
        pieces.discard()
        return
    try:
        pieces.bring(connections, progress)
    except _NoRangesError:
        pieces.discard()
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise explain(error, remote, target) from error
    else:
        pieces.hand_over(part)


def bytes_in_pieces(remote: RemoteFile, target: Path) -> int:
    """Return how many bytes of whole pieces an earlier call has left."""
    return 0 if remote.size is None else _Pieces(remote, target).received


class _NoRangesError(Exception):
    """The server sends another part of the file than the one that was asked for."""


class _Pieces:
    """The pieces of one file: `<target>.pieces` has their bytes, `<target>.pieces.done` a line for each whole one."""

    def __init__(self, remote: RemoteFile, target: Path) -> None:
        assert remote.size is not None
        self._remote, self._target, self._size = remote, target, remote.size
        self._data = target.with_name(f"{target.name}{PIECES_SUFFIX}")
        self._journal = target.with_name(f"{target.name}{PIECES_SUFFIX}.done")
        self._header = f"{remote.sha256} {remote.size} {_PIECE_BYTES}"
        self._count = -(-remote.size // _PIECE_BYTES)
        done = self._read_journal()
        self._missing = deque(index for index in range(self._count) if index not in done)
        self.received = sum(self._length(index) for index in done)
        self._lock, self._stopped, self._workers = threading.Lock(), threading.Event(), 0
        self._events: queue.Queue[int | Exception] = queue.Queue()
        self._threads: list[threading.Thread] = []

    def _read_journal(self) -> set[int]:
        """Return the pieces that are whole; whether a loss of power has damaged one, the hash of the file tells."""
        try:
            header, *lines = self._journal.read_text(encoding="ascii").split("\n")[:-1]  # the last may be cut off
        except (OSError, ValueError):
            return set()
        if header != self._header or not self._data.exists() or self._data.stat().st_size != self._size:
            return set()
        return {int(line) for line in lines if line.isdigit() and int(line) < self._count}

    def _length(self, index: int) -> int:
        return min(_PIECE_BYTES, self._size - index * _PIECE_BYTES)

    def bring(self, connections: int, progress: Progress | None) -> None:
        """Fetch what is missing. Whatever ends it, no connection writes to the file afterwards."""
        require_space(self._target.parent, self._size - self.received, self._target.name)
        if len(self._missing) == self._count:
            # First: a kill must not leave a new file beside the journal of an older one.
            self._journal.write_text(f"{self._header}\n", encoding="ascii")
            self._data.write_bytes(b"")
            os.truncate(self._data, self._size)
        left = len(self._missing)
        self._workers = min(connections, left)
        # Daemons: a connection that hangs must not keep the program from ending.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._workers)]
        for thread in self._threads:
            thread.start()
        try:
            with self._journal.open("a", encoding="ascii") as journal:
                while left:
                    with contextlib.suppress(queue.Empty):
                        event = self._events.get(timeout=_POLL_SECONDS)
                        if isinstance(event, Exception):
                            raise event
                        journal.write(f"{event}\n")
                        journal.flush()
                        left -= 1
                    if progress is not None:
                        progress(self._target.name, self.received, self._size)
        finally:
            with self._lock:
                self._stopped.set()

    def _work(self) -> None:
        try:
            with self._data.open("r+b", buffering=0) as file:
                while (index := self._next()) is not None and self._bring_piece(index, file):
                    self._events.put(index)
        except Exception as error:  # raised again where somebody waits for the pieces
            self._events.put(error)

    def _next(self) -> int | None:
        with self._lock:
            if self._missing and not self._stopped.is_set():
                return self._missing.popleft()
            self._workers -= 1
            return None

    def _bring_piece(self, index: int, file: IO[bytes]) -> bool:
        """Fetch one piece; False: this connection gives up, and leaves it to the others."""
        first, end = index * _PIECE_BYTES, index * _PIECE_BYTES + self._length(index)
        waits = retry_waits()
        while first < end:
            before = first
            try:
                first = self._receive(first, end, file)
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                wait = next(waits, None)
                if not is_passing(error):
                    raise
                if wait is None:
                    if self._is_the_last(index, first):
                        raise
                    return False
                self._stopped.wait(wait_after(error, wait))
            if first > before:
                waits = retry_waits()
            if self._stopped.is_set():
                return False
        return True

    def _receive(self, first: int, end: int, file: IO[bytes]) -> int:
        """Write what one request brings of the bytes from `first` to `end`, and return where it stopped."""
        start = first
        with contextlib.closing(open_range(self._remote, first, end - 1)) as response:
            if not starts_at(response, first):
                raise _NoRangesError
            while first < end:
                try:
                    block = read_block(response)[: end - first]
                except (http.client.HTTPException, OSError):
                    break  # what came before counts; the next request goes on from there
                if not block:
                    break
                with self._lock:
                    if self._stopped.is_set():
                        break
                    file.seek(first)
                    file.write(block)
                    self.received += len(block)
                first += len(block)
        if first == start and not self._stopped.is_set():
            raise ConnectionResetError("the connection ended before the first byte")
        return first

    def _is_the_last(self, index: int, reached: int) -> bool:
        """Tell whether this connection was the last one; else leave its piece to the others. Some servers allow one."""
        with self._lock:
            self._workers -= 1
            if self._workers:
                self.received -= reached - index * _PIECE_BYTES
                self._missing.append(index)
            return not self._workers

    def _wait_for_all(self) -> None:
        """Wait until nobody has the file open, for Windows neither renames nor deletes an open one. No work is left."""
        for thread in self._threads:
            thread.join()

    def discard(self) -> None:
        """Delete the pieces."""
        self._wait_for_all()
        self._data.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def hand_over(self, part: Path) -> None:
        """Give the file, which is whole, the name of a download by one connection."""
        self._wait_for_all()
        rename(self._data, part)
        self._journal.unlink(missing_ok=True)
