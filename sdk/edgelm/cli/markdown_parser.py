"""PARSER: the Markdown of answers in the terminal, with emphasis as writers without spaces mean it."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_inline.state_inline import Scanned, StateInline
from markdown_it.token import Token

if TYPE_CHECKING:
    from markdown_it.utils import EnvType  # missing in version 2, which rich takes too


class _State(StateInline):
    """Find emphasis as CommonMark does, but that punctuation shuts marks out in scripts with spaces alone.

    By CommonMark, `**注意：**请` has no emphasis, because a mark behind punctuation needs a space behind it, and models
    write so in Chinese, Japanese and Korean all the time. What counts here: punctuation of these scripts is as their
    letters are, and any other may stand inside where a character of theirs stands outside.
    (https://github.com/tats-u/markdown-cjk-friendly)
    """

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:  # noqa: N802
        scanned = super().scanDelims(start, canSplitWord)
        before = self.src[start - 1] if start else " "
        end = start + scanned.length
        behind = self.src[end] if end < self.posMax else " "
        if not canSplitWord or not (_has_no_spaces(before) or _has_no_spaces(behind)):
            return scanned
        opens = not _is_space(behind) and (_has_no_spaces(before) or not _is_punctuation(behind) or _is_edge(before))
        closes = not _is_space(before) and (_has_no_spaces(behind) or not _is_punctuation(before) or _is_edge(behind))
        return Scanned(opens, closes, scanned.length)


class _Inline(ParserInline):
    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        state = _State(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens


def _is_space(character: str) -> bool:
    return isWhiteSpace(ord(character))


def _is_edge(character: str) -> bool:
    return _is_space(character) or _is_punctuation(character)


def _is_punctuation(character: str) -> bool:
    """Tell punctuation of scripts that have spaces between words."""
    return (isMdAsciiPunct(ord(character)) or isPunctChar(character)) and not _has_no_spaces(character)


def _has_no_spaces(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WFH" and not character.isspace()


def _parser() -> MarkdownIt:
    parser = MarkdownIt()
    parser.inline = _Inline()
    # Without HTML and link definitions nothing of an answer is invisible: rich draws neither.
    parser.configure("commonmark", {"html": False})
    return parser.enable(["strikethrough", "table"]).disable("reference")


PARSER = _parser()
