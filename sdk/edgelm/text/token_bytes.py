"""Token bytes: what the name of a vocabulary's token stands for in the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgelm.errors import TokenizerError

# Of what a decoder's step replaces: in use is one. Without a limit, a token could stand for gigabytes.
_MOST_CHARACTERS = 16
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Build GPT-2's table: printable Latin-1 characters stand for their own byte, 256 and up for the other bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenBytes:
    """Turn a token's name into its exact bytes, by the `decoder` section of a tokenizer.json.

    It knows byte-level vocabularies (GPT-2 and after), and those of SentencePiece: `▁` for a space, `<0x0A>` for a
    byte. `strips_leading_space` says whether a decoded text loses the space that the encoder put before it.

    Raises:
        TokenizerError: the section names a decoder of another kind.
    """

    def __init__(self, decoder: Mapping[str, Any] | None) -> None:
        self.strips_leading_space = False
        self._alphabet: dict[str, int] | None = None
        self._replacements: list[tuple[str, str]] = []
        self._has_byte_tokens = False
        steps: list[Mapping[str, Any]] = []
        if decoder is not None:
            steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        for step in steps:
            self._add(step)
        if self._alphabet is None and not self._replacements:
            names = ", ".join(step["type"] for step in steps) or "none"
            raise TokenizerError(
                f"The tokenizer's decoder is {names}; supported are ByteLevel, Metaspace, "
                "and Replace with ByteFallback, Fuse and Strip."
            )

    def _add(self, step: Mapping[str, Any]) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._alphabet = _byte_alphabet()
            case {"type": "Metaspace"}:
                self._replacements.append((step["replacement"], " "))
                scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
                self.strips_leading_space |= scheme != "never"
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if (
                0 < len(pattern) <= _MOST_CHARACTERS and len(content) <= _MOST_CHARACTERS
            ):
                self._replacements.append((pattern, content))
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                self.strips_leading_space |= start == 1
            case {"type": "ByteFallback"}:
                self._has_byte_tokens = True
            case {"type": "Fuse"}:
                pass
            case _:
                raise TokenizerError(
                    f"The tokenizer's decoder has the step {str(dict(step))[:200]}; supported are ByteLevel, "
                    "Metaspace, and Replace with ByteFallback, Fuse and Strip."
                )

    def of(self, name: str) -> bytes:
        """Return the bytes of a token of the vocabulary proper."""
        if self._has_byte_tokens and (match := _BYTE_TOKEN.fullmatch(name)):
            return bytes([int(match[1], 16)])
        if self._alphabet is not None and all(character in self._alphabet for character in name):
            return bytes(self._alphabet[character] for character in name)
        return self.of_added(name)

    def of_added(self, text: str) -> bytes:
        """Return the bytes of an added token: its text, with spaces where the vocabulary writes `▁`.

        Gemma lists its runs of spaces (`▁▁`) among the added tokens too, and writes code with them.
        """
        for old, new in self._replacements:
            text = text.replace(old, new)
        return text.encode("utf-8")
