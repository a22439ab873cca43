"""Steps of a tokenizer.json that compose a text as SentencePiece's normalization does.

Its table has each composed character's full decomposition, mark behind mark, and takes the longest run it knows; so
marks keep their order, and none goes past another one or to a letter that is composed already. NFC does all three:
shadda and vowel of Arabic, dagesh and vowel of Hebrew change places, `ê` with an acute becomes `ế`. A noncharacter goes
where it would, and what NFC finds on both sides of it stays apart.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import groupby, pairwise
from typing import Any

_BARRIER = "\ufdd0"  # for the inner use of a program
_CODES = range(0x80, 0x20000)  # beyond are ideographs, which no mark follows
_TRAILING_JAMO = tuple(map(chr, range(0x11A8, 0x11C3)))


def composing_steps() -> list[dict[str, Any]]:
    """Return the normalizers, which come before the compiled one."""
    return [
        {"type": "Replace", "pattern": {"Regex": _places_apart()}, "content": _BARRIER},
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"String": _BARRIER}, "content": ""},
    ]


@cache
def _places_apart() -> str:
    """Write what stands where NFC would find more: the same for each tokenizer, and a look at all characters."""
    decomposed = {each: unicodedata.normalize("NFD", each) for each in map(chr, _CODES)}
    marks = {each for each in decomposed if unicodedata.combining(each)}
    composed = [each for each, parts in decomposed.items() if parts != each]
    following: dict[str, set[str]] = {}  # in the decomposition of one character
    for parts in (decomposed[each] for each in composed if unicodedata.normalize("NFC", each) == each):
        for mark, next_mark in pairwise(part for part in parts if part in marks):
            following.setdefault(mark, set()).add(next_mark)
    behind = [f"(?<={_one_of([*composed, *(marks - following.keys())])})"]
    behind += [f"(?<={mark})(?!{_one_of(following[mark])})" for mark in sorted(following)]
    several = _one_of(each for each in composed if each not in marks and decomposed[each][0] in marks)  # of Tibetan
    return f"(?={_one_of([*marks, *_TRAILING_JAMO])})(?:{'|'.join(behind)})|(?<=.)(?={several})"


def _one_of(characters: Iterable[str]) -> str:
    """Write a class of a regular expression; in characters, as Oniguruma and JavaScript write codes differently."""
    numbered = enumerate(sorted(set(map(ord, characters))))
    runs = [[code for _, code in run] for _, run in groupby(numbered, lambda pair: pair[1] - pair[0])]
    return "[" + "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs) + "]"
