"""Constraint: the form that an answer must have."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from edgelm.arguments import as_list, check_boolean
from edgelm.errors import ConfigError
from edgelm.structure.schema_gaps import close_gaps

if TYPE_CHECKING:
    from edgelm.structure.constraint_matcher import ConstraintMatcher
    from edgelm.text.tokenizer import Tokenizer

# JSON is written in one line, as in most of what models have read. With free white space, small models get lost in it,
# and less is forced. A schema can choose otherwise: "x-guidance": {"whitespace_flexible": true, "item_separator": ",",
# "key_separator": ":"}. Without escapes by number, a name is written in one way alone, so that no object has it twice.
JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
}
_GBNF_RULE = re.compile(r"^[ \t]*[\w-]++[ \t]*::=", re.MULTILINE)
# What cannot be enforced is passed over.
LENIENT = {**JSON_STYLE, "lenient": True, "coerce_one_of": True}


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """Constrain an answer to a JSON schema, a regular expression, a grammar, or one of some texts.

    Made by its class methods, without a model. `after` are texts that turn the constraint on: until the answer has said
    one of them, the model writes what it likes; what follows it has the form. With `at_start` the answer has to begin
    with it, white space aside; one that begins otherwise stays free. The form is enforced token by token, so an
    answer that is complete has it; one cut off by `max_new_tokens`, by the context or by a stop string is a beginning
    of it.
    """

    kind: Literal["json_schema", "regex", "lark", "gbnf"]
    source: str
    after: tuple[str, ...] = ()
    at_start: bool = False

    def __repr__(self) -> str:
        """Show the ends of the form, of which the whole can be pages."""
        after = f" after {reprlib.repr(self.after)}" if self.after else ""
        return f"<Constraint: {self.kind} {reprlib.repr(self.source)}{after}>"

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any], *, strict: bool = True) -> Constraint:
        """Constrain to JSON that a schema (draft 2020-12) describes.

        strict: whether a keyword that cannot be enforced is an error; else it is passed over, `oneOf` is `anyOf`, and
            an object has no properties beside those named, unless it says that it may.

        Raises:
            ConfigError: the schema is no mapping, has a value that is not JSON, a number of too many digits, or a
                minProperties that cannot be enforced. Other keywords that cannot be are named when it is compiled for
                an answer.
        """
        check_boolean("strict", strict)
        if not isinstance(schema, Mapping):
            raise ConfigError(
                f"The JSON schema is {reprlib.repr(schema)}; it must be a mapping, such as {{'type': 'object'}}. A "
                "pydantic class gives one by its model_json_schema(), and json.loads makes one of a text."
            )
        try:
            closed = close_gaps(schema, strict=strict)
            if not strict:
                closed.setdefault("x-guidance", LENIENT)
            source = json.dumps(closed, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"The JSON schema is not JSON: {error}.") from error
        return cls(kind="json_schema", source=source)

    @classmethod
    def json_object(cls) -> Constraint:
        """Constrain to a JSON object, whatever it holds."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Constrain to texts that a regular expression (the syntax of Rust's crate regex) matches as a whole.

        Raises:
            ConfigError: the pattern is no text, or empty. One that is broken is named when an answer with it is asked
                for.
        """
        return cls(kind="regex", source=_text(pattern, "regular expression"))

    @classmethod
    def lark(cls, grammar: str) -> Constraint:
        """Constrain to a context-free grammar in llguidance's dialect of Lark; its first rule is `start`.

        Raises:
            ConfigError: the grammar is no text, or empty. One that is broken is named when an answer with it is asked
                for.
        """
        return cls(kind="lark", source=_text(grammar, "grammar"))

    @classmethod
    def gbnf(cls, grammar: str) -> Constraint:
        """Constrain to a grammar in GBNF, as llama.cpp reads it; its first rule is `root`.

        Raises:
            ConfigError: the grammar is no text, or empty. One that is broken is named when an answer with it is asked
                for.
        """
        return cls(kind="gbnf", source=_text(grammar, "grammar"))

    @classmethod
    def grammar(cls, grammar: str) -> Constraint:
        """Constrain to a grammar in whichever of the two languages it is: `name ::= ...` is GBNF, other rules are Lark.

        Raises:
            ConfigError: as from `lark`.
        """
        is_gbnf = isinstance(grammar, str) and _GBNF_RULE.search(grammar) is not None
        return cls.gbnf(grammar) if is_gbnf else cls.lark(grammar)

    @classmethod
    def choices(cls, texts: Iterable[str]) -> Constraint:
        """Constrain to exactly one of some texts.

        Raises:
            ConfigError: there are none, or one of them is no text of at least one character.
        """
        texts = as_list(texts, "choices takes a list of texts")
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(f"choices is {texts!r}; it must be a list of texts, none of them empty.")
        # As one terminal: of a rule's alternatives only some thousands are followed at a place.
        return cls(kind="lark", source="start: CHOICE\nCHOICE: " + " | ".join(map(lark_string, texts)))

    def starting_after(self, *texts: str, at_start: bool = False) -> Constraint:
        """Return the constraint that begins only once the answer has said one of `texts` (`at_start`: at its start).

        Raises:
            ConfigError: there are none, or one of them is no text of at least one character.
        """
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(f"starting_after is {texts!r}; it takes texts, one after the other, none of them empty.")
        if re.search("[\ud800-\udfff]", "".join(texts)):
            raise ConfigError(f"starting_after is {texts!r}; half of a surrogate pair is no character.")
        return replace(self, after=texts, at_start=at_start)

    def compile(self, tokenizer: Tokenizer, end_ids: Collection[int] = ()) -> ConstraintMatcher:
        """Make what checks one answer against the constraint.

        end_ids: the tokens that may follow a complete text, and that never stand before that.

        Raises:
            ConfigError: the schema has a keyword that cannot be enforced, or the pattern or grammar is broken; the
                message names it.
            MissingExtraError: llguidance is not installed.
        """
        from edgelm.structure.constraint_matcher import ConstraintMatcher

        return ConstraintMatcher(self, tokenizer, end_ids)


def lark_string(text: str) -> str:
    """Write a text as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # llguidance does not read it as it is


def _text(value: str, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"The {what} is {value!r}; it must be a text of at least one character.")
    return value
