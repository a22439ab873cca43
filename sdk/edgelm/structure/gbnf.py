"""GBNF: llama.cpp's grammars, written in Lark by llguidance's own converter."""

from __future__ import annotations

import re

# The converter compares rules with each other: 2,000 of them, in the worst order, take it two seconds. It reads
# characters one by one: so many take it a second.
_MOST_RULES = 2000
_MOST_CHARACTERS = 1 << 18
# A text or a set of characters, in which an escape and a # are what they are; one that nobody ends takes the rest.
_PART = re.compile(
    r'"(?:\\.|[^"\\])*+(?:"|\\?\Z)|\[(?:\\.|[^\]\\])*+(?:\]|\\?\Z)|(?P<comment>#[^\r\n]*+)|(?P<rule>::=)', re.DOTALL
)
_LONG_ESCAPE = re.compile(r"\\(?:U([0-9A-Fa-f]{8})|.)", re.DOTALL)


def lark_of_gbnf(grammar: str) -> str:
    """Return a grammar in GBNF as one in Lark.

    Raises:
        ValueError: it is none, is too long, or has too many rules.
    """
    from llguidance.gbnf_to_lark import gbnf_to_lark

    rules = sum(part["rule"] is not None for part in _PART.finditer(grammar))
    if rules > _MOST_RULES:
        raise ValueError(f"it has {rules} rules; at most {_MOST_RULES} are read. Write it in Lark, which may have more")
    read = _PART.sub(_as_the_converter_reads, grammar)
    if len(read) > _MOST_CHARACTERS:
        limit = f"{len(read)} characters without its comments; at most {_MOST_CHARACTERS} are read"
        raise ValueError(f"it has {limit}. Write it in Lark, which may have more")
    try:
        return str(gbnf_to_lark(read))
    except Exception as error:  # it raises no class of its own for a rule that is missing
        raise ValueError(error) from error


def _as_the_converter_reads(part: re.Match[str]) -> str:
    """Return a part without what the converter fails at: comments, which it copies over and over, and long escapes."""
    return "" if part["comment"] else _LONG_ESCAPE.sub(_without_long_escape, part[0])


def _without_long_escape(escape: re.Match[str]) -> str:
    r"""Write `\U0001F600` as the character: of what gbnf_to_lark makes of it, `\U1F600`, llguidance reads nothing."""
    code = int(escape[1] or "0", 16)
    if 0x80 <= code < 0x110000 and not 0xD800 <= code < 0xE000:
        return chr(code)
    return f"\\x{code:02x}" if escape[1] and code < 0x80 else escape[0]
