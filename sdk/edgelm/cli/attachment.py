"""Attachment: a text file that goes to the model with a message."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import ConfigError
from edgelm.files.regular_file import read_text

# More than the largest contexts in use hold, and still encoded within a second.
MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A file's name, without its folder, and its text."""

    name: str
    text: str

    @classmethod
    def read(cls, argument: str) -> Attachment:
        """Read a file of text in UTF-8, of at most MAX_BYTES bytes.

        Raises:
            ConfigError: there is none, or it is larger, or something else than text.
        """
        try:
            path = Path(argument).expanduser()
            text = read_text(path, MAX_BYTES)
        except FileNotFoundError as error:
            raise ConfigError(f"Cannot add {argument}: there is no such file.") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"Cannot add {argument}: it is not a text in UTF-8.") from error
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"Cannot add {argument}: {str(error).rstrip('.')}.") from error
        if "\0" in text:
            raise ConfigError(f"Cannot add {argument}: it is a binary file, not a text.")
        return cls(name=path.name, text=text.replace("\r\n", "\n"))


def message_with(attachments: Iterable[Attachment], text: str) -> str:
    """Put files before what is said of them, each in a fence that it does not have itself."""
    parts = []
    for attachment in attachments:
        longest = max((len(run) for run in re.findall(r"`{3,}", attachment.text)), default=2)
        fence = "`" * (longest + 1)
        parts.append(f"File {attachment.name}:\n{fence}\n{attachment.text.rstrip()}\n{fence}")
    return "\n\n".join([*parts, text])
