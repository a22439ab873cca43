"""ConstraintMatcher: which tokens may come next, by llguidance."""

from __future__ import annotations

import functools
import itertools
import re
import threading
import weakref
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ConfigError, EdgeLMError
from edgelm.extras import require
from edgelm.shared_use import NATIVE_CALLS
from edgelm.structure.constraint import JSON_STYLE, Constraint
from edgelm.structure.gbnf import lark_of_gbnf
from edgelm.structure.grammar_depth import refuse_grammar_depth

if TYPE_CHECKING:
    from edgelm.text.tokenizer import Tokenizer

_GRAMMAR_LINE = re.compile(r"\n +[0-9]+ \| ")
# llguidance's words, and the option that makes it pass over what they are about.
_WAYS_OUT = {"Unimplemented keys": "lenient", "Unknown format": "lenient", "oneOf": "coerce_one_of"}
_TOO_MANY_WAYS = "Current row has"
# llguidance's own limit is 2,000, and an object of n properties that may be left out has 4 n ways. Of 15 such objects,
# with 7,800 properties together, a token took up to 27 s.
_MOST_WAYS = 4_096
_NOTHING_CAN_COME = "NoExtensionBias"
_INTERRUPT = re.compile(r"PyErr \{ type: <class '(KeyboardInterrupt|SystemExit)'>, value: \w+\((\d*)")
_KINDS = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar", "gbnf": "grammar"}


class ConstraintMatcher:
    """Follow one answer, token by token, through a constraint. Made by `Constraint.compile`."""

    @NATIVE_CALLS
    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, end_ids: Collection[int]) -> None:
        llguidance = _llguidance()
        self._tokenizer = tokenizer  # the shared vocabulary only has a weak reference to it
        self._vocabulary = _vocabulary_of(tokenizer, llguidance)
        self._matcher = llguidance.LLMatcher(
            self._vocabulary,
            _grammar_of(constraint),
            log_level=0,
            limits=llguidance.LLParserLimits(max_items_in_row=_MOST_WAYS),
        )
        if not self._matcher.is_error():
            self._matcher.compute_bitmask()  # only now is it known that nothing has the form: {"$ref": "#"}
        if self._matcher.is_error():
            raise ConfigError(_explain(constraint, self._matcher.get_error()))
        self._end_ids = sorted(end_ids)
        self._after = [text.encode("utf-8") for text in constraint.after]
        self._at_start = constraint.at_start
        self._said = b""  # what may be the beginning of one of them
        self._crossing_of: dict[bytes, list[int]] = {}
        self._forced: list[int] | None = None  # None: not asked for yet
        self._is_active = not self._after

    @property
    @NATIVE_CALLS
    def is_active(self) -> bool:
        """Whether the constraint has a say about the next token."""
        return self._is_active or bool(self._crossing_ids())

    @property
    @NATIVE_CALLS
    def is_complete(self) -> bool:
        """Whether the text has the form, and nothing can follow it."""
        return self._is_active and bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @NATIVE_CALLS
    def mask(self, logits_V: NDArray[np.float32]) -> None:
        """Set the logits of all tokens that may not come next to -inf, in place.

        A vocabulary that is padded beyond the tokenizer's has its last rows masked.

        Raises:
            EdgeLMError: no token can continue the text.
        """
        if not self._is_active:
            logits_V[[id_ for id_ in self._crossing_ids() if id_ < logits_V.size]] = -np.inf
            return
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        size = min(logits_V.size, self._tokenizer.vocab_size)
        allowed_V = np.zeros(logits_V.size, np.bool_)
        allowed_V[:size] = np.unpackbits(bits, count=size, bitorder="little").view(np.bool_)
        is_accepting = self._matcher.is_accepting()
        for id_ in self._end_ids:
            if id_ < logits_V.size:
                allowed_V[id_] = is_accepting
        if not allowed_V.any():
            raise EdgeLMError(
                "The constraint allows no token here: no token of this model's vocabulary continues it"
                f"{' but those that end the answer (stop_token_ids)' if self._end_ids else ''}."
            )
        np.copyto(logits_V, -np.inf, where=~allowed_V)

    @NATIVE_CALLS
    def forced(self) -> list[int]:
        """Return the tokens that must come next, as the tokenizer writes the text that they make.

        What is written by a token of text that would end the answer is written by another.
        """
        if not self._is_active:
            return []
        if self._forced is None:
            must_come = self._matcher.compute_ff_tokens()
            self._check()
            self._forced = list(itertools.takewhile(lambda id_: not self._ends_as_text(id_), must_come))
            if must_come and not self._forced:
                self._forced = self._longest_of_others(self._matcher.compute_ff_bytes())
        return self._forced

    def _ends_as_text(self, token_id: int) -> bool:
        """Tell whether a token ends the answer though the text goes on; a control token stands in no text: where one
        must come, the grammar names it.
        """
        return token_id in self._end_ids and token_id not in self._tokenizer.control_token_ids

    def _longest_of_others(self, text: bytes) -> list[int]:
        """Return the longest token that a text begins with and that ends no answer; none where there is none."""
        shut_out = self._tokenizer.control_token_ids.union(self._end_ids)
        lengths = {
            id_: len(data)
            for id_ in range(self._tokenizer.vocab_size)
            if id_ not in shut_out and (data := self._tokenizer.token_bytes(id_)) and text.startswith(data)
        }
        return [max(lengths, key=lengths.__getitem__)] if lengths else []

    @NATIVE_CALLS
    def advance(self, token_id: int) -> None:
        """Take the token that was chosen.

        Raises:
            ConfigError: it is none of those allowed, or the constraint became too large to follow.
        """
        if not self._is_active:
            if self._after:
                self._wait(token_id)
            return
        if token_id in self._end_ids:
            self._is_active = False
            return
        rest = self._forced[1:] if self._forced and self._forced[0] == token_id else []
        self._forced = rest or None
        self._matcher.consume_token(token_id)
        self._check()

    def _wait(self, token_id: int) -> None:
        """Look for the text after which the constraint begins; what its last token says beyond that counts already."""
        self._said += self._tokenizer.token_bytes(token_id)
        if self._at_start:
            self._said = self._said.lstrip()
            ends = [len(text) for text in self._after if self._said.startswith(text)]
            may_begin = any(text.startswith(self._said) for text in self._after)
        else:
            ends = [place + len(text) for text in self._after if (place := self._said.find(text)) >= 0]
            may_begin = True
        if not ends:
            longest = max(map(len, self._after))
            self._said = self._said if self._at_start else self._said[-longest:]
            self._after = self._after if may_begin else []
            return
        rest = self._rest_ids(self._said[min(ends) :])
        self._is_active = self._matcher.try_consume_tokens(rest) == len(rest)
        self._after = []

    def _crossing_ids(self) -> list[int]:
        """Return the tokens that would finish a text of `after` and say more, which the constraint does not allow."""
        crossing: list[int] = []
        for text in self._after:
            for said in range(1, len(text)):
                if self._said == text[:said] if self._at_start else self._said.endswith(text[:said]):
                    crossing += self._crossing(text[said:])
        return crossing

    def _crossing(self, remainder: bytes) -> list[int]:
        if remainder not in self._crossing_of:
            self._crossing_of[remainder] = [
                id_
                for id_ in range(self._tokenizer.vocab_size)
                if (data := self._tokenizer.token_bytes(id_)).startswith(remainder)
                and self._matcher.validate_tokens(rest := self._rest_ids(data[len(remainder) :])) < len(rest)
            ]
        return self._crossing_of[remainder]

    def _rest_ids(self, data: bytes) -> list[int]:
        return list(self._vocabulary.greedy_tokenize(data.decode("utf-8", errors="replace")))

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        error = self._matcher.get_error()
        _raise_interrupt(error)
        error = error.strip().partition("\n")[0].rstrip(".")
        if _TOO_MANY_WAYS in error:
            error = (
                "too much may come at one place. Of an object with hundreds of properties, require all, or have fewer"
            )
        if error.startswith(_NOTHING_CAN_COME):
            error = "no token of this model's vocabulary continues it"
        raise ConfigError(f"The constraint cannot be followed: {error}.")


def check_form(constraint: Constraint) -> None:
    """Refuse a form that no model can be held to, before one is loaded.

    Raises:
        ConfigError: the schema has a keyword that cannot be enforced, or the pattern or grammar is broken.
        MissingExtraError: llguidance is not installed.
    """
    error = _llguidance().LLMatcher.validate_grammar(_grammar_of(constraint))
    if error:
        raise ConfigError(_explain(constraint, error))


def _llguidance() -> Any:
    return require("llguidance", "structured", "A constraint")


def _grammar_of(constraint: Constraint) -> str:
    matcher, source = _llguidance().LLMatcher, constraint.source
    try:
        if constraint.kind == "json_schema":
            return str(matcher.grammar_from_json_schema(source, defaults=JSON_STYLE))
        if constraint.kind == "regex":
            return str(matcher.grammar_from_regex(source))
        lark = lark_of_gbnf(source) if constraint.kind == "gbnf" else source
        refuse_grammar_depth(lark)
        return str(matcher.grammar_from_lark(lark))
    except ValueError as error:  # a number that fits none of llguidance's
        raise ConfigError(_explain(constraint, str(error))) from error


class _Vocabulary:
    """What llguidance asks of a tokenizer: each token's bytes, which are control tokens, and how a text is encoded.

    It takes tokens for what they say. So a text that the tokenizer would write otherwise (ｆ as f, two spaces as one)
    is made of the longest tokens that say it, as far as there are some. There is one token more than the tokenizer has,
    as the end token: the model's own depend on the request.
    """

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        # Weak, as llguidance keeps this object, and the cache keeps llguidance's for as long as the tokenizer lives.
        self._tokenizer = weakref.ref(tokenizer)
        end = tokenizer.vocab_size
        self.tokens = [*map(tokenizer.token_bytes, range(end)), b"<|end of text|>"]
        self.eos_token_id = end
        self.bos_token_id = None
        self.special_token_ids = [*tokenizer.control_token_ids, end]

    def __call__(self, text: str) -> list[int]:
        tokenizer = self._tokenizer()
        assert tokenizer is not None  # every matcher holds it
        ids, data = tokenizer.encode_continuation(text), text.encode("utf-8")
        return ids if b"".join(map(tokenizer.token_bytes, ids)) == data else self._longest_tokens(data)

    def _longest_tokens(self, data: bytes) -> list[int]:
        ids: list[int] = []
        while data:
            lengths = range(min(len(data), self._longest), 0, -1)
            length = next((length for length in lengths if data[:length] in self._id_of_bytes), 0)
            if not length:
                break
            ids.append(self._id_of_bytes[data[:length]])
            data = data[length:]
        return ids

    @functools.cached_property
    def _id_of_bytes(self) -> dict[bytes, int]:
        shut_out = set(self.special_token_ids)
        return {data: id_ for id_, data in enumerate(self.tokens) if data and id_ not in shut_out}

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._id_of_bytes), default=0)


_vocabularies: weakref.WeakKeyDictionary[Tokenizer, Any] = weakref.WeakKeyDictionary()
_building = threading.Lock()


def _vocabulary_of(tokenizer: Tokenizer, llguidance: Any) -> Any:
    """Return llguidance's view of a tokenizer, made once: it takes 0.2 s for 49,152 tokens."""
    with _building:
        vocabulary = _vocabularies.get(tokenizer)
        if vocabulary is None:
            vocabulary = _vocabularies[tokenizer] = llguidance.LLTokenizer(_Vocabulary(tokenizer))
        return vocabulary


def _explain(constraint: Constraint, error: str) -> str:
    """Name what cannot be enforced, and the way out."""
    _raise_interrupt(error)
    error = error.partition("<backtrace>")[0]  # of llguidance's own code
    if error.startswith(_NOTHING_CAN_COME):
        error = (
            "no text has this form. Look for a part that leads back to itself before it says anything, or for a set of "
            "control characters alone."
        )
    _, is_schema, inside = error.partition("failed to compile JSON schema: ")
    if constraint.kind == "lark" and is_schema:  # the grammar's lines follow, and around a tool's schema they are ours
        return (
            f"The JSON schema of a tool, or in a grammar, cannot be enforced: {_GRAMMAR_LINE.split(inside)[0].strip()}"
        )
    if constraint.kind == "json_schema":
        if "regex" in error or "lookaround" in error:
            error = f"pattern: {error}"
        for sign, option in _WAYS_OUT.items():
            if sign in error:
                error = error.partition(". Enable")[0]
                error += f'. To give that up, put {{"x-guidance": {{"{option}": true}}}} into the schema.'
    return f"The {_KINDS[constraint.kind]} cannot be enforced: {error.strip()}"


def _raise_interrupt(error: str) -> None:
    """Raise Ctrl-C, or the end of a command by SIGTERM, that reached `_Vocabulary`: llguidance makes a text of it."""
    if found := _INTERRUPT.search(error):
        if found[1] == "KeyboardInterrupt":
            raise KeyboardInterrupt
        raise SystemExit(int(found[2]) if found[2] else None)
