"""Sampling: from one row of logits to the next token. Pure numpy; V is the vocabulary."""

from __future__ import annotations

import copy
import math
import secrets
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgelm.arguments import is_whole
from edgelm.decoding.filters import FILTERS, Candidates, Logits, exclude_top_choices, keep_surprise
from edgelm.decoding.history import History
from edgelm.errors import ConfigError, EdgeLMError
from edgelm.generation_config import GenerationConfig

if TYPE_CHECKING:
    from edgelm.generation_config import LogitsProcessor
    from edgelm.structure.constraint_matcher import ConstraintMatcher
    from edgelm.text.token_healing import PrefixMatcher

_LONGEST_REPEAT = 50  # beyond it the penalty is overwhelming


# Processors change a row in place, for greedy decoding too.


def add_logit_bias(logits_V: Logits, config: GenerationConfig, history: History) -> None:
    """Add a number to the logits of some tokens (OpenAI's `logit_bias`)."""
    for id_, bias in config.logit_bias.items():
        if not 0 <= id_ < logits_V.size:
            raise ConfigError(f"logit_bias names token {id_}; the model's ids are 0 to {logits_V.size - 1}.")
        logits_V[id_] += bias


def penalize_repetition(logits_V: Logits, config: GenerationConfig, history: History) -> None:
    """Divide the positive and multiply the negative logits of all tokens seen (arXiv:1909.05858)."""
    ids = np.flatnonzero(history.seen)
    seen = logits_V[ids]
    penalty = np.float32(config.repetition_penalty)
    logits_V[ids] = np.where(seen < 0, seen * penalty, seen / penalty)


def penalize_presence(logits_V: Logits, config: GenerationConfig, history: History) -> None:
    """Subtract the penalty from every token of the answer once (OpenAI's `presence_penalty`)."""
    logits_V[np.flatnonzero(history.counts > 0)] -= np.float32(config.presence_penalty)


def penalize_frequency(logits_V: Logits, config: GenerationConfig, history: History) -> None:
    """Subtract the penalty from every token of the answer as often as it occurs (OpenAI's `frequency_penalty`)."""
    ids = np.flatnonzero(history.counts > 0)
    logits_V[ids] -= np.float32(config.frequency_penalty) * history.counts[ids]


def penalize_repeated_sequences(logits_V: Logits, config: GenerationConfig, history: History) -> None:
    """Subtract from each token that would prolong a repeated sequence, more with its length (DRY).

    Source: text-generation-webui, pull request 5677. The cost grows with how often the last token was there before.
    """
    ids, breakers = history.token_ids, history.breakers
    if not ids or ids[-1] in breakers:
        return
    lengths: dict[int, int] = {}
    last = len(ids) - 1
    for place in map(int, np.flatnonzero(np.asarray(ids[:-1]) == ids[-1])):
        length = 1
        while (
            length <= min(place, _LONGEST_REPEAT)
            and ids[place - length] == ids[last - length]
            and ids[last - length] not in breakers
        ):
            length += 1
        following = ids[place + 1]
        if following not in breakers:
            lengths[following] = max(length, lengths.get(following, 0))
    for id_, length in lengths.items():
        if length >= config.dry_allowed_length:
            logits_V[id_] -= config.dry_multiplier * config.dry_base ** (length - config.dry_allowed_length)


def ban_repeated_ngrams(logits_V: Logits, config: GenerationConfig, history: History) -> None:
    """Ban each token with which the last `no_repeat_ngram_size` tokens would be there a second time (1705.04304)."""
    assert history.ngrams is not None
    _ban(logits_V, history.ngrams.repeating())


def ban_ngrams_of_source(logits_V: Logits, config: GenerationConfig, history: History) -> None:
    """Ban each token with which the last `encoder_no_repeat_ngram_size` tokens would be some of the source's."""
    ids = history.token_ids
    first = max(0, len(ids) + 1 - config.encoder_no_repeat_ngram_size)
    _ban(logits_V, history.in_source.get(tuple(ids[first:]), ()))


def ban_early_ends(logits_V: Logits, config: GenerationConfig, history: History) -> None:
    """Ban the end tokens while the answer has fewer than `min_new_tokens` tokens."""
    if len(history.token_ids) - history.prompt_tokens < config.min_new_tokens:
        _ban(logits_V, history.end_ids)


# One row each: the field of GenerationConfig, and the function it turns on when it is not neutral. They apply in this
# order, which is transformers'.
PROCESSORS: dict[str, Callable[[Logits, GenerationConfig, History], None]] = {
    "logit_bias": add_logit_bias,
    "repetition_penalty": penalize_repetition,
    "presence_penalty": penalize_presence,
    "frequency_penalty": penalize_frequency,
    "dry_multiplier": penalize_repeated_sequences,
    "no_repeat_ngram_size": ban_repeated_ngrams,
    "encoder_no_repeat_ngram_size": ban_ngrams_of_source,
    "min_new_tokens": ban_early_ends,
}


class Sampler:
    """Choose the tokens of one answer, one after the other.

    matcher: what the answer has to be; it masks the logits before all else. breakers, end_ids: see History. source_ids:
    what an encoder read; without one the prompt is the source, as in transformers.
    `seed` is the one in use: the config's, or a fresh one. The same seed and logits give the same tokens.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompt_ids: Sequence[int] = (),
        matcher: ConstraintMatcher | PrefixMatcher | None = None,
        breakers: Collection[int] = (),
        end_ids: Collection[int] = (),
        source_ids: Sequence[int] = (),
    ) -> None:
        self.seed: int = secrets.randbits(63) if config.seed is None else config.seed
        self._config = config
        self._prompt_ids = prompt_ids
        self._matcher = matcher
        self._breakers = breakers
        self._end_ids = end_ids
        self._source_ids = source_ids or prompt_ids
        self._chosen = 0
        self._surprise_limit = 2 * config.mirostat_tau
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._processors = _active(PROCESSORS, config)
        self._draws = config.temperature > 0 or config.sampler is not None
        self._filters = _active(FILTERS, config) if self._draws else []
        self._changes_logits = bool(self._processors or config.processors)
        self._history: History | None = None  # made with the first row, which tells the size of the vocabulary

    def sample(self, logits_V: Logits) -> int:
        """Choose the next token, and remember it for the penalties; the caller's row stays as it is.

        Without processors and at temperature 0.0 this is one argmax; of equal logits the first counts.

        Raises:
            EdgeLMError: a logit is NaN or infinite, or the constraint allows no token.
            ConfigError: `logit_bias` names a token outside the vocabulary; a processor or sampler of the config's own
                returned what is none.
        """
        is_constrained = self._matcher is not None and self._matcher.is_active
        row_V = logits_V
        if self._changes_logits or is_constrained:
            history = self._history or self._start_history(logits_V.size)
            row_V = self._scratch
            row_V[:] = logits_V
            if self._matcher is not None and is_constrained:
                if forced := self._matcher.forced():
                    return self._remember(forced[0])
                self._matcher.mask(row_V)
            self._process(row_V, history, is_constrained=is_constrained)
        token_id = _best(row_V)
        return self._remember(self._draw(Candidates(row_V, row_V[token_id])) if self._draws else token_id)

    def log_probabilities(self, logits_V: Logits) -> Logits:
        """Return the natural-log probabilities [V] of the next token, as the processors leave them, for a search.

        Raises:
            EdgeLMError: a logit is NaN or infinite.
            ConfigError: as from `sample`.
        """
        _best(logits_V)
        row_V: Logits = logits_V - np.float32(Candidates.of(logits_V).log_sum())
        if self._changes_logits:
            self._process(row_V, self._history or self._start_history(logits_V.size))
            _best(row_V)
        return row_V

    def after(self, token_id: int) -> Sampler:
        """Return a sampler that has chosen one token more; this one stays as it is."""
        sampler = copy.copy(self)
        if self._history is not None:
            sampler._history = self._history.copy()
        sampler._remember(token_id)
        return sampler

    def _start_history(self, vocab_size: int) -> History:
        self._scratch = np.empty(vocab_size, np.float32)
        self._history = History.of_prompt(
            self._prompt_ids,
            vocab_size,
            ngram_size=self._config.no_repeat_ngram_size,
            breakers=self._breakers,
            end_ids=self._end_ids,
            source_ids=self._source_ids,
            source_ngram_size=self._config.encoder_no_repeat_ngram_size,
        )
        return self._history

    def _process(self, row_V: Logits, history: History, *, is_constrained: bool = False) -> None:
        for process in self._processors:
            process(row_V, self._config, history)
        if not self._config.processors:
            return
        _best(row_V)  # what is wrong after this is theirs
        masked_V = row_V == -np.inf if is_constrained else None
        for custom in self._config.processors:
            _apply(custom, row_V, history.token_ids, masked_V)

    def forced_tokens(self, most: int) -> list[int]:
        """Choose at once up to `most` tokens that the constraint leaves no choice about: what `sample` would return.

        A loop computes them in one step with the token before them: none that the answer has no room for.
        """
        if self._matcher is None:
            return []
        return [self._remember(id_) for id_ in self._matcher.forced()[: max(0, min(most, self.room))]]

    @property
    def room(self) -> int:
        """How many more tokens the answer may have by its `max_new_tokens`."""
        most = self._config.max_new_tokens
        return sys.maxsize if most is None else most - self._chosen

    @property
    def is_forced(self) -> bool:
        """Whether the constraint leaves no choice about the next token."""
        return self._matcher is not None and bool(self._matcher.forced())

    def ends_with(self, count: int) -> bool:
        """Whether the constraint's text is complete with the `count`th token chosen, and nothing can follow it."""
        return self._matcher is not None and count == self._chosen and self._matcher.is_complete

    def _remember(self, token_id: int) -> int:
        self._chosen += 1
        if self._history is not None:
            self._history.add(token_id)
        if self._matcher is not None:
            self._matcher.advance(token_id)
        return token_id

    def _draw(self, left: Candidates) -> int:
        """Choose one of the tokens that the filters leave."""
        config, vocab_size = self._config, left.logits_N.size
        for keep in self._filters:
            left = keep(left, config)
        if config.xtc_probability > 0 and self._random.random() < config.xtc_probability:
            left = exclude_top_choices(left, config)
        if config.sampler is not None:
            row_V = left.spread(vocab_size)
            is_open_V = row_V > -np.inf  # before the sampler, which may write there
            return _checked_choice(config.sampler(row_V, self._random), is_open_V)
        if config.mirostat_tau > 0:
            left = keep_surprise(left, self._surprise_limit)
        place = left.draw(self._random)
        if config.mirostat_tau > 0:  # the limit moves so that the answer's mean surprise becomes so many bits
            surprise = (left.log_sum() - float(left.logits_N[place])) / math.log(2)
            self._surprise_limit -= config.mirostat_eta * (surprise - config.mirostat_tau)
        return left.id_at(place)


def token_logprobs(logits_V: Logits, token_id: int, alternatives: int) -> tuple[float, list[tuple[int, float]]]:
    """Return the natural-log probability of a token, and the most likely tokens with theirs, best first.

    Raises:
        EdgeLMError: a logit is NaN or infinite.
    """
    _best(logits_V)
    log_sum = Candidates.of(logits_V).log_sum()
    best: list[tuple[int, float]] = []
    rest_V = logits_V.copy() if alternatives else logits_V
    # An argmax takes 4 us, a partition 400 us.
    for _ in range(min(alternatives, logits_V.size)):
        id_ = int(rest_V.argmax())
        best.append((id_, float(logits_V[id_]) - log_sum))
        rest_V[id_] = -np.inf
    return float(logits_V[token_id]) - log_sum, best


def _active(table: dict[str, Any], config: GenerationConfig) -> list[Any]:
    neutral = GenerationConfig()
    return [function for field, function in table.items() if getattr(config, field) != getattr(neutral, field)]


def _apply(
    process: LogitsProcessor, row_V: Logits, token_ids: Sequence[int], masked_V: NDArray[np.bool_] | None
) -> None:
    """Let a processor of the config's own change a row; masked_V: the tokens that no processor brings back."""
    changed = process(row_V, token_ids)
    if changed is not None and changed is not row_V:
        row_V[:] = _checked_row(changed, row_V.shape)
    if masked_V is not None:
        row_V[masked_V] = -np.inf
    best = float(row_V.max())  # NaN where one is
    if not math.isfinite(best):
        raise ConfigError(
            f"A processor of the config left {best} as the best logit; it must leave one token a finite one (with a "
            "constraint, one that it allows), and none NaN."
        )


def _checked_row(changed: object, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        values = np.asarray(changed)
    except ValueError as error:  # lists of unlike lengths
        raise ConfigError(f"A processor returned no array: {error}") from error
    if values.shape != shape or not np.can_cast(values.dtype, np.float32, "same_kind"):
        raise ConfigError(
            f"A processor returned the shape {values.shape} of {values.dtype}; it must be {shape} of float32, or None."
        )
    return values


def _checked_choice(token_id: int, is_open_V: NDArray[np.bool_]) -> int:
    if not is_whole(token_id) or not 0 <= token_id < is_open_V.size or not is_open_V[token_id]:
        raise ConfigError(f"The config's sampler returned {token_id!r}; it must be a token whose logit is not -inf.")
    return int(token_id)


def _ban(logits_V: Logits, token_ids: Iterable[int]) -> None:
    """Set the logits of some tokens to -inf, unless no other is left: a constraint may allow these alone."""
    ids = [id_ for id_ in token_ids if id_ < logits_V.size]
    before = logits_V[ids]
    logits_V[ids] = -np.inf
    if logits_V.max() == -np.inf:
        logits_V[ids] = before


def _best(logits_V: Logits) -> int:
    """Return the first of the most likely tokens; argmax finds a NaN before any number, so it checks the whole row."""
    best = int(logits_V.argmax())
    value = float(logits_V[best])
    if not math.isfinite(value):
        raise EdgeLMError(
            f"The model's logits are not finite (token {best} has {value}). Its weights are damaged, or overflow in "
            "this precision: check the package (edgelm show), or export it with another --precision."
        )
    return best
