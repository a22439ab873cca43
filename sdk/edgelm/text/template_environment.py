"""What a chat template has of jinja2 and beside it: what transformers gives to templates, within bounds."""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn

import jinja2.ext
import jinja2.lexer
import jinja2.nodes
import jinja2.parser

from edgelm.errors import ChatTemplateError
from edgelm.text.template_sandbox import BudgetedEnvironment

# The variables that a `generation` block writes at its beginning and its end; training gives them values.
GENERATION_MARKS = ("edgelm_generation_start", "edgelm_generation_end")
# Compiling takes time and memory for a template's words and marks, and for the expressions that they make
# (template_sandbox has their bound).
MAX_TOKENS = 5 << 10
_MAX_DATE_FORMAT = 200


class RefusedError(Exception):
    """What `raise_exception` of a template says."""


def template_environment() -> BudgetedEnvironment:
    """Return one to compile a template in."""
    environment = BudgetedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Bound, _GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.meter()
    return environment


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; else it is its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        start, end = (jinja2.nodes.Output([jinja2.nodes.Name(mark, "load")]) for mark in GENERATION_MARKS)
        return [node.set_lineno(line) for node in (start, jinja2.nodes.Scope(body), end)]


class _Bound(jinja2.ext.Extension):
    """Refuses a template of too many words and marks, before more of them are compiled."""

    def filter_stream(self, stream: Iterable[jinja2.lexer.Token]) -> Iterator[jinja2.lexer.Token]:
        """Pass them on, and count them."""
        for count, token in enumerate(stream):
            if count == MAX_TOKENS:
                raise ChatTemplateError(f"The chat template has more than {MAX_TOKENS} words and marks.")
            yield token


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise RefusedError(message)


def _strftime_now(format: str) -> str:  # templates may pass it by this name
    if len(format) > _MAX_DATE_FORMAT or re.search("[0-9]{4}", format):
        raise RefusedError(f"{format[:40]!r} is no format of a date")  # the system would pad to any width
    if sys.platform == "win32":  # where the mark for no leading zero is another, and one that is unknown an error
        format = re.sub("(?<!%)((?:%%)*)%-", r"\1%#", format)
    return datetime.datetime.now().strftime(format)
