"""Tokenizer: text to token ids and back, in which a text never becomes a control token unasked."""

from __future__ import annotations

import json
import operator
import re
import reprlib
import secrets
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
import tokenizers.models

from edgelm.arguments import as_list, as_path, as_token_ids
from edgelm.errors import TokenizerError
from edgelm.files.regular_file import read_file
from edgelm.text.digit_groups import with_linear_digit_groups
from edgelm.text.token_bytes import TokenBytes
from edgelm.text.tokenizer_trial import MAX_BYTES, try_tokenizer

# Added tokens that stand for markup of the model's own (`<think>`, `</tool_call>`), though not flagged as special ...
_MARKUP = re.compile(r"<[^\s<>]+>")
# ... unlike HTML, for which some vocabularies (Gemma's) have added tokens: that is text to read and to write.
_HTML = re.compile(
    r"</?(a|b|blockquote|body|br|caption|code|div|em|footer|h[1-6]|hr|html|i|iframe|img|li|ol|p|pre|s|span|strong|sub|"
    r"sup|table|tbody|td|tfoot|th|thead|tr|u|ul)/?>"
)

_SURROGATE = re.compile("[\ud800-\udfff]")
_BOUNDARY = "\ue002"  # a private-use character: no normalizer takes it away, as SentencePiece's does control characters
# Characters. `encode` holds the interpreter's lock until it is done, 4 s for a megabyte, in which no other thread runs;
# `encode_batch_fast` releases it, and starts threads of its own, which short texts do not need.
_LONG = 1 << 14
_BPE_OPTIONS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
_ADDED_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_NO_ID = 1 << 32  # and above: the library counts in 32 bits
_MOST_IDS = 1 << 24  # 64 times as many as the largest vocabulary: some things go through all of them

# Characters of all regular expressions: the longest in use have some hundred. One of 100,000 takes 413 MB to compile.
_MOST_PATTERNS = 1 << 13


class Tokenizer:
    """Encode and decode text with the vocabulary of a tokenizer.json. Made by `load`.

    Control tokens are the added tokens that are flagged special, and those that look like markup: `<think>`. In the
    tokenizer that edgelm runs, each of them has a random name instead of its literal, in the added tokens and in the
    vocabulary. So no text can spell one, whatever the model behind it is (BPE with or without merges, Unigram).
    """

    def __init__(self, rust: tokenizers.Tokenizer, secret_names: Mapping[str, str], token_bytes: TokenBytes) -> None:
        self._rust = rust
        self._token_bytes = token_bytes
        self._bytes_of_id: dict[int, bytes] = {}
        self._last_search: tuple[tuple[str, ...], frozenset[int]] = ((), frozenset())
        self._control_names: dict[int, str] = {}
        self._secret_of_id: dict[int, str] = {}
        added = {token.content: id_ for id_, token in rust.get_added_tokens_decoder().items()}
        for literal, secret in secret_names.items():
            self._control_names[added[secret]] = literal
            self._secret_of_id[added[secret]] = secret
        self._added_texts = {id_: content for content, id_ in added.items() if id_ not in self._control_names}
        self.control_tokens: Mapping[str, int] = {literal: id_ for id_, literal in self._control_names.items()}
        self.control_token_ids = frozenset(self._control_names)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer.json of a checkpoint folder or model package; an unknown one is tried in a child first.

        Raises:
            TokenizerError: the file is missing, is broken, or decodes in a way that edgelm does not know.
        """
        path = as_path(folder) / "tokenizer.json"
        try:
            data = read_file(path, MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise TokenizerError(
                f"There is no tokenizer.json in {folder}. Name a folder that has one: a checkpoint, a package, or what "
                "`edgelm tokenizer train` wrote."
            ) from error
        except (OSError, ValueError) as error:
            raise TokenizerError(f"Cannot read {path}: {error}.") from error
        try_tokenizer(data, path)
        return cls.parse(data, path)

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Tokenizer:
        """Read the content of a tokenizer.json without a trial; `path` is what errors name.

        Raises:
            TokenizerError: as `load`.
        """
        with _errors(f"Cannot read {path}"):
            spec = json.loads(data.decode("utf-8"))
            _check_patterns(spec, path)
            spec["pre_tokenizer"] = with_linear_digit_groups(spec.get("pre_tokenizer"))
            token_bytes = TokenBytes(spec.get("decoder"))
            secret_names = _hide_control_tokens(spec)
            rust = _build(spec)
            rust.no_truncation()
            rust.no_padding()
            return cls(rust, secret_names, token_bytes)

    @cached_property
    def vocab_size(self) -> int:
        """How many token ids there are, from 0 to the largest; a few may have no token, where a vocabulary has gaps.

        Raises:
            TokenizerError: the largest is beyond all measure.
        """
        largest = max(self._rust.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= _MOST_IDS:
            raise TokenizerError(f"tokenizer.json has a token with id {largest}; at most {_MOST_IDS - 1} can be.")
        return largest + 1

    @property
    def added_tokens(self) -> dict[str, int]:
        """The tokens that a text is searched for first, control tokens among them: literal -> id."""
        return {**self.control_tokens, **{text: id_ for id_, text in self._added_texts.items()}}

    def __repr__(self) -> str:
        return f"<Tokenizer: {self.vocab_size} tokens, {len(self.control_tokens)} of them control tokens>"

    def encode(self, text: str, *, control_tokens: bool = False) -> list[int]:
        """Encode a text; no token is put before or after it.

        control_tokens: whether `<|im_start|>` in the text becomes that control token, as in transformers. By default
        it is encoded as the characters that it is, as every text from outside should be.

        Raises:
            TokenizerError: the text has half of a surrogate pair, which is no character, or is no text at all.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"encode takes one text; this is {reprlib.repr(text)}. encode_batch takes several.")
        return self.encode_parts(self.split(text) if control_tokens else (text,))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts, each as `encode` does; in 0.7 of its time, because the library keeps no places of tokens.

        Raises:
            ConfigError: it is one text, or no list.
            TokenizerError: a text has half of a surrogate pair, which is no character, or is no text at all.
        """
        texts = as_list(texts, "encode_batch takes a list of texts")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TokenizerError(f"encode_batch takes texts; the one at {i} is {reprlib.repr(text)}.")
        _check_characters(texts)
        with _errors(f"Cannot encode {len(texts)} texts", quoting=False):
            return self._encode_in_threads(texts)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a text as the first thing that the model reads: after `leading_ids`.

        Raises:
            TokenizerError: the text has half of a surrogate pair, which is no character.
        """
        return [*self.leading_ids, *self.encode(text)]

    def as_source(self, ids: Sequence[int]) -> list[int]:
        """Put around a text's tokens what the model's author puts around what an encoder reads."""
        before, behind = self.around
        return [*before, *ids, *behind]

    @property
    def leading_ids(self) -> tuple[int, ...]:
        """The tokens that the model's author puts before every text: `<bos>`, or none.

        They are what the tokenizer's post-processor adds. A chat template writes them itself.
        """
        return self.around[0]

    @cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that the model's author puts before what an encoder reads, and those behind it."""
        plain: list[int] = self._rust.encode("a", add_special_tokens=False).ids
        whole: list[int] = self._rust.encode("a", add_special_tokens=True).ids
        starts = range(len(whole) - len(plain) + 1)
        start = next((start for start in starts if whole[start : start + len(plain)] == plain), 0)
        return tuple(whole[:start]), tuple(whole[start + len(plain) :])

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Encode a text in which control tokens stand as ids and all else is ordinary text.

        Spaces around a control token, and at the beginning, are treated as in one whole text.

        Raises:
            TokenizerError: a text has half of a surrogate pair, which is no character.
        """
        parts = list(parts)
        texts = [part for part in parts if isinstance(part, str)]
        _check_characters(texts)
        whole = "".join(part if isinstance(part, str) else self._secret_of_id[part] for part in parts)
        # Whoever reads a secret name in a message can spell the control token from then on.
        with _errors(f"Cannot encode the text {''.join(texts)[:40]!r}", quoting=False):
            ids: list[int] = (
                self._rust.encode(whole, add_special_tokens=False).ids
                if len(whole) < _LONG
                else self._encode_in_threads([whole])[0]
            )
            return ids

    def _encode_in_threads(self, texts: list[str]) -> list[list[int]]:
        """Encode texts in threads of the library's; here where the system let them not start, which it tries once."""
        try:
            encoded = self._rust.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:  # a panic
            if "ThreadPoolBuildError" not in str(error):
                raise
            encoded = [self._rust.encode(text, add_special_tokens=False) for text in texts]
        return [text.ids for text in encoded]

    def encode_continuation(self, text: str) -> list[int]:
        """Encode a text as it continues another one: no space is put before it.

        Raises:
            TokenizerError: the text has half of a surrogate pair, which is no character.
        """
        if not self.strips_leading_space:
            return self.encode(text)
        # A character that nothing merges with takes the space before it.
        before = len(self.encode(_BOUNDARY))
        return self.encode(_BOUNDARY + text)[before:]

    def split(self, text: str) -> list[str | int]:
        """Split a text at the literals of control tokens, which become their ids."""
        parts: list[str | int] = []
        beginnings, lengths = self._beginnings
        end = 0
        for match in beginnings.finditer(text):
            start = match.start()
            for length in lengths[match[0]] if start >= end else ():
                literal = text[start : start + length]
                if literal in self.control_tokens:
                    parts += (text[end:start], self.control_tokens[literal])
                    end = start + len(literal)
                    break
        return [*parts, text[end:]]

    @cached_property
    def _beginnings(self) -> tuple[re.Pattern[str], Mapping[str, Sequence[int]]]:
        """Where a control token's literal may begin, and the lengths of those with that first character, longest first.

        They are looked up by length: one pattern of Gemma 3's 6,254 literals takes 70 us at each "<" of a text.
        """
        lengths: dict[str, set[int]] = {}
        for literal in filter(None, self.control_tokens):
            lengths.setdefault(literal[0], set()).add(len(literal))
        first, second = (
            f"[{''.join(map(re.escape, {literal[place : place + 1] for literal in self.control_tokens}))}]"
            for place in (0, 1)
        )
        has_short = any(len(literal) == 1 for literal in self.control_tokens)
        pattern = (first if has_short else f"{first}(?={second})") if lengths else r"(?!)"
        return re.compile(pattern), {char: sorted(some, reverse=True) for char, some in lengths.items()}

    def decode(self, ids: Iterable[int], *, skip_control_tokens: bool = True) -> str:
        """Decode token ids; bytes that are no UTF-8 become U+FFFD, and an id above the vocabulary has no text.

        Raises:
            TokenizerError: an id is negative, or these are no token ids.
        """
        if isinstance(ids, (str, bytes, bytearray)) or not isinstance(ids, Iterable):
            raise TokenizerError(f"decode takes a list of token ids; this is {reprlib.repr(ids)}.")
        skipped = self.control_token_ids if skip_control_tokens else frozenset()
        data = b"".join(self.token_bytes(id_) for id_ in as_token_ids(ids) if id_ not in skipped)
        if self.strips_leading_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    @property
    def strips_leading_space(self) -> bool:
        """Whether decoding drops one space at the beginning, as the encoder put one there."""
        return self._token_bytes.strips_leading_space

    def token_bytes(self, id_: int) -> bytes:
        """Return the exact bytes of one token: a part of a character, maybe; of a control token its literal.

        An id above the vocabulary has none: padding gives a model's head such rows.

        Raises:
            TokenizerError: the id is negative.
        """
        data = self._bytes_of_id.get(id_)
        if data is None:
            data = self._bytes_of_id[id_] = self._look_up(id_)
        return data

    def _look_up(self, id_: int) -> bytes:
        if id_ < 0:
            raise TokenizerError(f"There is no token {id_}; ids begin at 0.")
        if id_ in self._control_names:
            return self._control_names[id_].encode("utf-8")
        if id_ in self._added_texts:
            return self._token_bytes.of_added(self._added_texts[id_])
        name = self._rust.id_to_token(id_) if id_ < _NO_ID else None
        return b"" if name is None else self._token_bytes.of(name)

    def token_text(self, id_: int) -> str:
        """Return one token as text, to show it; U+FFFD stands where it holds a part of a character."""
        return self.token_bytes(id_).decode("utf-8", errors="replace")

    @cached_property
    def ids_by_bytes(self) -> array[int]:
        """The tokens but for control tokens, in the order of their bytes, so that those that begin alike are together.

        Sorted once: looking through 49,152 tokens takes 80 ms.
        """
        return array("I", sorted(set(range(self.vocab_size)) - self.control_token_ids, key=self.token_bytes))

    def ids_with(self, texts: Iterable[str]) -> frozenset[int]:
        """Return the tokens that have one of these texts in them.

        Looking through 49,152 tokens takes 80 ms, so what was found last is kept: programs ask for the same in each
        request, and some from an event loop.
        """
        wanted = tuple(texts)
        last, found = self._last_search
        if wanted != last:
            ids = range(self.vocab_size)
            found = frozenset(id_ for id_ in ids if any(text in self.token_text(id_) for text in wanted))
            self._last_search = wanted, found
        return found

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its name in the vocabulary ("Ġthe", "<|im_end|>"), or None."""
        id_: int | None = self.control_tokens.get(token)
        return self._rust.token_to_id(token) if id_ is None else id_


def _check_patterns(spec: dict[str, Any], path: Path) -> None:
    """Check how long the regular expressions of a tokenizer.json are together, before the library compiles them."""
    stack = [spec.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    characters = 0
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            characters += len(str(value.get("Regex", "")))
            stack += value.values()
        elif isinstance(value, list):
            stack += value
    if characters > _MOST_PATTERNS:
        raise TokenizerError(
            f"{path} has regular expressions of {characters} characters; at most {_MOST_PATTERNS} are compiled."
        )


def _hide_control_tokens(spec: dict[str, Any]) -> dict[str, str]:
    """Give the control tokens of a tokenizer.json random names, in place; return literal -> name."""
    names: dict[str, str] = {}
    for token in spec["added_tokens"]:
        literal = token["content"]
        if token["special"] or (_MARKUP.fullmatch(literal) and not _HTML.fullmatch(literal)):
            # Private-use characters and digits: no normalizer changes them. 128 random bits: nobody can write them.
            token["content"] = names.setdefault(literal, f"\ue000{secrets.randbits(128)}\ue001")
            # A normalizer could put a space before the name, or a neighbour could hide it.
            token["normalized"] = token["single_word"] = False
    model = spec["model"]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: [[name, score], ...]
        model["vocab"] = [[names.get(name, name), score] for name, score in vocab]
        return names
    for literal, name in names.items():
        if literal in vocab:
            vocab[name] = vocab.pop(literal)
    if isinstance(vocab, dict) and isinstance(model.get("merges"), list):
        model["merges"] = _Merges(model["merges"])
        model["merges"].hidden = names.keys()
    return names


class _Merges(list[Any]):
    """Pairs of tokens, of which the library gets those that neither are nor make a hidden one.

    Each is let go when it has been read: all of them are never in memory twice.
    """

    hidden: Set[str]
    failure: BaseException | None = None
    _reading: Iterator[tuple[str, str] | None]

    # No bytecode of its own: an interrupt of the time before would be raised there, where nothing catches it.
    __iter__ = property(operator.attrgetter("_reading.__iter__"))

    def begin(self) -> None:
        """Enter the block that keeps what ends the reading."""
        self._reading = self._read()
        next(self._reading)

    def _read(self) -> Iterator[tuple[str, str] | None]:
        try:
            yield None
            yield from self._shown()
        except (Exception, KeyboardInterrupt, SystemExit) as failure:
            self.failure = failure
            raise

    def _shown(self) -> Iterator[tuple[str, str]]:
        self.reverse()
        while self:
            merge = self.pop()
            if isinstance(merge, str) and merge.startswith("#version"):  # a line that the library passes over, too
                continue
            a, b = merge.split(" ") if isinstance(merge, str) else merge
            if a not in self.hidden and b not in self.hidden and a + b not in self.hidden:
                yield a, b


def _build(spec: dict[str, Any]) -> tokenizers.Tokenizer:
    """Make the library's tokenizer of a tokenizer.json, and empty it; byte pairs go there without a text in between.

    Gemma's 262,144 tokens and 513,511 pairs take 0.7 of the time of a text so.
    """
    if not (isinstance(spec["model"].get("merges"), _Merges) and spec["model"].get("type", "BPE") == "BPE"):
        content = json.dumps(spec, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        spec.clear()  # 20 MB of a vocabulary of 49,152, before the library makes as much of its own
        return tokenizers.Tokenizer.from_buffer(content)
    model, added = spec.pop("model"), spec.pop("added_tokens")
    frame = {**spec, "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    rust = tokenizers.Tokenizer.from_str(json.dumps(frame))
    options = {name: model[name] for name in _BPE_OPTIONS if model.get(name) is not None}
    merges = model["merges"]
    merges.begin()
    try:
        rust.model = tokenizers.models.BPE(model["vocab"], merges, **options)
    except TypeError:  # which the library makes of whatever ends the merges early, of Ctrl-C too
        if merges.failure is not None:
            raise merges.failure from None
        raise
    rust.add_tokens([tokenizers.AddedToken(**{name: token[name] for name in _ADDED_FIELDS}) for token in added])
    return rust


def _check_characters(texts: Iterable[str]) -> None:
    for text in texts:
        if _SURROGATE.search(text):
            raise TokenizerError(f"Cannot encode the text {text[:40]!r}: half of a surrogate pair is no character.")


@contextmanager
def _errors(what: str, *, quoting: bool = True) -> Iterator[None]:
    """Turn whatever a file or the Rust library raises into a TokenizerError that begins with `what`.

    quoting: whether it may repeat the words of the error, which may repeat what the library was given.
    """
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        problem = type(error).__name__
        if problem == "PanicException":  # of the Rust library, a BaseException; pyo3 offers no class to catch it by
            problem = "the tokenizers library gave up"
        elif not isinstance(error, Exception):
            raise
        if quoting:
            raise TokenizerError(f"{what}: {problem}: {error}.") from error
        raise TokenizerError(f"{what}: {problem}.") from None
