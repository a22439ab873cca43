"""DraftModel: guess the next tokens with a smaller model of the same tokenizer."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.decoding.generate import compute_piece, computed_together, next_chunk
from edgelm.errors import ConfigError
from edgelm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

_KIND = 1
_LEAST_ROOM = 16  # for the longest guess (speculation.LONGEST_GUESS)
_alike: weakref.WeakKeyDictionary[Tokenizer, weakref.WeakSet[Tokenizer]] = weakref.WeakKeyDictionary()


class DraftModel:
    """Guess what another model takes for the likeliest next tokens. For one answer.

    Source: arXiv:2211.17192, with a draft that is certain of its likeliest token.

    Raises:
        ConfigError: the draft has another tokenizer than the model that it guesses for, or an encoder.
    """

    costs_nothing = False
    kinds: Mapping[int, float] = {_KIND: 0.7}

    def __init__(self, draft: LanguageModel, model: LanguageModel) -> None:
        if draft.config.encoder is not None:
            raise ConfigError(
                f"{draft.name} cannot draft for {model.name}: it has an encoder, and does not go on with a text. Take "
                'a draft without one, or speculation="prompt_lookup".'
            )
        check_tokenizers(draft, model)
        self._session, self._prefixes = draft.session, draft.prefixes.of_model(draft.config, draft.fingerprint)
        self._tokens = min(draft.config.vocab_size, model.config.vocab_size)
        self._cache = draft.new_cache()
        self._ids: list[int] = []
        self._agreed = 0  # how many tokens of the cache are known to be the text's
        self._prompt_ids: list[int] = []  # what is read as a prompt: the text when the draft began with it
        self._together = 0  # how many of those are computed together

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take the tokens that the text goes on with."""
        self._ids.extend(token_ids)

    def look(self) -> int | None:
        """Return the kind of the guess that can be made; None where the text does not fit the draft's context."""
        room = self._session.config.max_position_embeddings - len(self._ids)
        if room < _LEAST_ROOM or max(self._ids[self._agreed :], default=0) >= self._tokens:
            return None
        return _KIND

    def guess(self, count: int) -> list[int]:
        """Return the next `count` tokens as the draft takes them for likeliest; none while it still reads the text.

        Each call reads one piece of it, so that nobody waits for a whole prompt between two tokens.
        """
        ids, cache = self._ids, self._cache
        logits_V = self._read_piece()
        if logits_V is None or cache.length < len(ids):
            return []
        self._agreed = len(ids)
        guessed = [int(logits_V[: self._tokens].argmax())]
        while len(guessed) < count:
            logits_V = self._session.forward(guessed[-1:], cache)[0]
            guessed.append(int(logits_V[: self._tokens].argmax()))
        return guessed

    def _read_piece(self) -> NDArray[np.float32] | None:
        """Read what comes next of the text, without what was guessed wrong: the logits [V] behind it, or None inside
        of what it reads as a prompt.
        """
        ids, cache = self._ids, self._cache
        while self._agreed < min(cache.length, len(ids)) and cache.token_ids[self._agreed] == ids[self._agreed]:
            self._agreed += 1
        cache.truncate(min(self._agreed, len(ids) - 1))
        self._agreed = cache.length
        if cache.length == 0:
            self._begin()
        if cache.length < len(self._prompt_ids):
            logits_V = compute_piece(self._session, self._prompt_ids, cache)
            if logits_V is not None:
                self._prefixes.keep(cache, self._together)
        else:
            logits_V = self._session.forward(next_chunk(ids, cache.length), cache)[0]
        self._prefixes.slide(cache, self._together)
        return logits_V

    def _begin(self) -> None:
        """Let the text so far be a prompt, and take what the draft has kept of it."""
        self._prompt_ids = [*self._ids]
        together = computed_together(self._session, self._cache, self._prompt_ids)
        self._together = len(together)
        self._prefixes.fill(self._cache, together)


def check_tokenizers(draft: LanguageModel, model: LanguageModel) -> None:
    """Refuse a draft whose token ids mean something else.

    Raises:
        ConfigError: a token differs.
    """
    theirs, ours = draft.tokenizer, model.tokenizer
    if theirs is ours or theirs in _alike.setdefault(ours, weakref.WeakSet()):
        return
    size = max(theirs.vocab_size, ours.vocab_size)
    differing = next((id_ for id_ in range(size) if theirs.token_bytes(id_) != ours.token_bytes(id_)), None)
    if differing is None and theirs.control_token_ids == ours.control_token_ids:
        _alike[ours].add(theirs)
        return
    which = "which tokens are control tokens"
    if differing is not None:
        there, here = theirs.token_text(differing), ours.token_text(differing)
        which = f"token {differing}, which is {there!r} there and {here!r} here"
    raise ConfigError(
        f"{draft.name} cannot draft for {model.name}: their tokenizers differ in {which}. Take a draft of the same "
        'family, or speculation="prompt_lookup".'
    )
