"""Languages: those that a translator's tokenizer has tokens for, and where these stand in what the model reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import takewhile

from edgelm.config import ModelConfig
from edgelm.errors import ConfigError
from edgelm.text.tokenizer import Tokenizer

# How the added tokens of a family name a language, and whether that of the answer stands before the source. Elsewhere
# the answer begins with it, and the source's own stands around the source.
_FORMS = (
    (re.compile(r"([a-z]{3}_[A-Z][a-z]{3})"), False),  # NLLB: fra_Latn
    (re.compile(r"([a-z]{2}_[A-Z]{2})"), False),  # mBART: fr_XX
    (re.compile(r"__(java|python|en_XX|javascript|php|ruby|go)__"), False),  # PLBart, of programs
    (re.compile(r"__([a-z]{2,3})__"), False),  # M2M100: __fr__
    (re.compile(r">>([\w-]+)<<"), True),  # Marian: >>fra<<
    (re.compile(r"<2([\w-]+)>"), True),  # T5 of MADLAD-400: <2fr>
)
_NEAR = 5  # names, in a message


class Languages(Mapping[str, int]):
    """The languages that a model with an encoder knows: name -> token id. Empty where its tokenizer names none.

    source, target, as methods take them: a language's name; None is what the model's author chose, if anything.
    """

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self._tokenizer, self._config = tokenizer, config
        self._ids: dict[str, int] = {}
        self._before_source = False
        if config.encoder is None:
            return
        for form, before_source in _FORMS:
            found = ((form.fullmatch(token), id_) for token, id_ in tokenizer.added_tokens.items())
            self._ids = {match[1]: id_ for match, id_ in found if match is not None}
            if self._ids:
                self._before_source = before_source
                break

    def __repr__(self) -> str:
        return f"<Languages: {', '.join(self) or 'none'}>"

    def __getitem__(self, name: str) -> int:
        return self._ids[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def source_ids(self, text: str | Sequence[int], source: str | None, target: str | None) -> Sequence[int]:
        """Encode a text as the encoder reads it; token ids are taken as they are.

        Raises:
            ConfigError: there is no such language, the model has none to choose, or ids leave none to choose.
            TokenizerError: the text has half of a surrogate pair, which is no character.
        """
        before, behind = self._tokenizer.around
        chosen: list[tuple[str, str]] = []
        if source is not None:
            chosen.append(("source_language", source))
            id_ = self._id("source_language", source)
            if not any(other in self._own for other in (*before, *behind)):
                raise ConfigError(f"source_language is {source!r}; the model takes none. Leave it out.")
            before, behind = (
                tuple(id_ if other in self._own else other for other in part) for part in (before, behind)
            )
        begun: list[str | int] = []
        if target is not None and self._before_source:
            chosen.append(("target_language", target))
            literal = self._tokenizer.token_text(self._id("target_language", target))
            begun = [*self._tokenizer.split(literal), " "]  # where it is a control token, as one
        if isinstance(text, str):
            return [*before, *self._tokenizer.encode_parts([*begun, text]), *behind]
        if chosen:
            name, value = chosen[0]
            raise ConfigError(
                f"{name} is {value!r}; the source is token ids, which are taken as they are. Give a text."
            )
        return text

    def answer_ids(self, text: str) -> list[int]:
        """Encode a text as the answer that is taught: as a source, but for the language.

        Raises:
            TokenizerError: the text has half of a surrogate pair, which is no character.
        """
        before, behind = ([id_ for id_ in part if id_ not in self._own] for part in self._tokenizer.around)
        return [*before, *self._tokenizer.encode(text), *behind]

    def config_for(self, target: str | None) -> ModelConfig:
        """Return the model's config, whose `decoder_prompt_ids` ask for this language.

        Raises:
            ConfigError: there is no such language.
        """
        if target is None or self._before_source:
            return self._config
        id_ = self._id("target_language", target)
        if self._config.decoder_start_token_id in self._own:  # mBART's first models begin with the language itself
            return replace(self._config, decoder_start_token_id=id_)
        return replace(self._config, forced_bos_token_id=id_)

    @property
    def is_chosen(self) -> bool:
        """Whether there is none to choose for an answer, or the model's author did; else the model does, each time."""
        return not self._own or any(id_ in self._own for id_ in self._config.decoder_prompt_ids)

    @property
    def _own(self) -> Collection[int]:
        """The tokens of languages that stand around a source and before an answer."""
        return () if self._before_source else self._ids.values()

    def _id(self, field: str, name: str) -> int:
        if name in self._ids:
            return self._ids[name]
        if not self._ids:
            raise ConfigError(f"{field} is {name!r}; the model's tokenizer names no languages. Leave it out.")
        near = sorted(self._ids, key=lambda known: _likeness(name.lower(), known), reverse=True)[:_NEAR]
        raise ConfigError(
            f"{field} is {name!r}; near it of the model's {len(self)}: {', '.join(near)}. `edgelm show` lists all."
        )


def _likeness(name: str, other: str) -> tuple[int, float]:
    """Rate how alike two names are: of short ones, how they begin says the most."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False))
    return len(list(same)), SequenceMatcher(None, name, other).ratio()
