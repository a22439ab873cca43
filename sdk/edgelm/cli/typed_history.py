"""TypedHistory: what was typed into the chat, kept for the next one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from prompt_toolkit.history import History

from edgelm.files import atomic
from edgelm.files.file_lock import file_lock

# What is kept in all, and the longest entry: a pasted file would push out everything else.
_MAX_BYTES, _MAX_ENTRY_BYTES = 1 << 20, 1 << 14


class TypedHistory(History):
    """Keep entries in a file of one JSON text a line, the oldest first; several chats may write it at once.

    Each change replaces the file as a whole, so that a crash leaves the old one or the new one.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._change(b"")

    def load_history_strings(self) -> Iterator[str]:
        """Yield the entries, the newest first."""
        for line in reversed(self._read().splitlines()):
            try:
                text = json.loads(line)
            except (ValueError, RecursionError):  # an entry that somebody edited must not hide the others
                continue
            if isinstance(text, str):
                yield text

    def store_string(self, string: str) -> None:
        """Add an entry; where the disk refuses it, it stays in this chat alone."""
        entry = json.dumps(string).encode() + b"\n"
        if len(entry) <= _MAX_ENTRY_BYTES:
            try:
                self._change(entry)
            except OSError:
                return

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:  # any other error must not make an empty history of it
            return b""

    def _change(self, entry: bytes) -> None:
        with file_lock(self._path.with_name(f"{self._path.name}.lock")):
            content = self._read() + entry
            if len(content) > _MAX_BYTES:
                content = content[-_MAX_BYTES // 2 :].partition(b"\n")[2]
            with atomic.replace_file(self._path) as file:
                if sys.platform != "win32":  # what one says to a model is for nobody else's eyes
                    os.fchmod(file.fileno(), 0o600)
                file.write(content)
