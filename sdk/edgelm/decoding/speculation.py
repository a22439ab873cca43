"""Speculation: several tokens of an answer in one step, guessed first and then checked by the model.

A step of a few tokens takes little longer than one of a single token, because the weights are read once. So the loop
guesses how the text goes on, computes all guesses in one step, and keeps those that the sampler chooses too. A guess is
one token, not a distribution: taking the sampled token, and the guess with it where they are the same, is the rejection
sampling of arXiv:2211.17192 for a draft that is certain, so the answer's distribution is the model's.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.decoding.draft_length import DraftLength, StepCosts, StepPlan
from edgelm.decoding.generate import Decoder
from edgelm.decoding.sampling import Sampler
from edgelm.memory.kv_cache import KVCache

LONGEST_GUESS = 15  # a step of 16 tokens: a longer one computes more than it saves reading
_FIRST_PAUSE, _LONGEST_PAUSE = 8, 256  # steps without a guess that costs something, after guessing has lost


class Drafter(Protocol):
    """What guesses the next tokens of one answer: PromptLookup or DraftModel."""

    @property
    def costs_nothing(self) -> bool:
        """Whether a guess may be made only to see whether it comes true."""

    @property
    def kinds(self) -> Mapping[int, float]:
        """The kinds of guesses, each with how often a token of one is right until more is known."""

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take the tokens that the text goes on with."""

    def look(self) -> int | None:
        """Return the kind of the guess that can be made here, or None."""

    def guess(self, count: int) -> list[int]:
        """Return the guess: `count` tokens, or none where it has to read on first, a piece with each call."""


class Speculator:
    """Guess for one answer, as many tokens as it pays, and learn from what becomes of the guesses.

    exact: every token is computed with the bits that it has alone (`Decoder.forward_single_steps`). `drafted` and
    `accepted` count tokens.
    """

    def __init__(self, drafter: Drafter, costs: StepCosts, *, exact: bool = False) -> None:
        self.exact = exact
        self.drafted = self.accepted = 0
        self._drafter, self._costs = drafter, costs
        self._length = DraftLength(drafter.kinds)
        self._kind = 0
        self._guess: list[int] = []
        self._is_computed = False  # otherwise the guess was made only to see whether it comes true
        self._right, self._has_failed = 0, False
        self._pause, self._paused = _FIRST_PAUSE, 0
        self._is_set_up: set[int] = set()  # exact steps of so many tokens, in this answer's cache

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take the tokens that the text goes on with: the prompt, then each token as it is chosen."""
        self._drafter.extend(token_ids)
        for id_ in token_ids:
            if self._has_failed or self._right == len(self._guess):
                return
            if id_ != self._guess[self._right]:
                self._has_failed = True
                return
            self._right += 1
            if self._is_computed:
                self.accepted += 1

    def guess(self, most: int) -> list[int]:
        """Return up to `most` tokens to compute with the next one; none where that would lose."""
        return self.guess_beside(StepPlan(self._costs), most)[0]

    def guess_beside(self, plan: StepPlan, most: int) -> tuple[list[int], StepPlan]:
        """Return up to `most` tokens to compute in a step that is planned, and the plan with them."""
        if self._guess:
            self._length.learn(self._kind, self._right, self._has_failed)
        self._guess, self._right, self._has_failed = [], 0, False
        kind = self._drafter.look() if most > 0 else None
        if kind is None:
            return [], plan
        best = self._length.best(kind, min(most, LONGEST_GUESS), plan)
        count = best.computed - plan.computed
        if is_a_try := count == 0 and self._is_time_to_try(plan.costs):
            count, best = 1, dataclasses.replace(plan, computed=plan.computed + 1)
        self._kind, self._is_computed = kind, count > 0
        if count:
            started = time.perf_counter()
            self._guess = self._drafter.guess(count)
            if self._guess:
                self._length.learn_cost(count, time.perf_counter() - started)
                self.drafted += count
                if is_a_try:
                    self._pause, self._paused = min(2 * self._pause, _LONGEST_PAUSE), 0
            return self._guess, best if self._guess else plan
        if self._drafter.costs_nothing:
            self._guess = self._drafter.guess(1)
        return [], plan

    def _is_time_to_try(self, costs: StepCosts) -> bool:
        """Tell whether to see, by one token, if guesses that cost something come true by now."""
        if self._drafter.costs_nothing or not costs.is_known:
            return False
        self._paused += 1
        return self._paused >= self._pause

    def compute(self, session: Decoder, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.float32]:
        """Compute T tokens, the next one and the guess, in one step: logits [T, V]."""
        started = time.perf_counter()
        if self.exact:
            rows_TV = session.forward_single_steps(token_ids, cache)
        else:
            rows_TV = session.forward(token_ids, cache, all_logits=True)
        count = len(token_ids)
        # The first exact step of a length makes memory and a binding for it, and says nothing of the next one's time.
        if not self.exact or count == 1 or count in self._is_set_up:
            self._costs.add(count, time.perf_counter() - started)
        self._is_set_up.add(count)
        return rows_TV


def speculate(
    session: Decoder,
    logits_V: NDArray[np.float32],
    cache: KVCache,
    sampler: Sampler,
    speculator: Speculator,
    cancel: threading.Event | None = None,
) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
    """Yield what `generate.decode` yields, in fewer steps; whoever takes a token gives it to the speculator, too.

    What was guessed wrong leaves the cache again. Tokens that a constraint forces are computed as `decode` does it.
    """
    limit, user = session.config.max_position_embeddings, cache.user
    token_id = sampler.sample(logits_V)
    yield token_id, logits_V
    while cache.length < limit and not (cancel is not None and cancel.is_set()):
        if forced := sampler.forced_tokens(limit - cache.length - 1):
            rows_TV = session.forward((token_id, *forced), cache, all_logits=True)
            yield from zip(forced, rows_TV, strict=False)
            token_id = sampler.sample(rows_TV[-1])
            yield token_id, rows_TV[-1]
            continue
        guess = speculator.guess(min(_longest_guess(session, cache, speculator.exact), sampler.room - 1))
        length = cache.length + 1  # with the tokens that are chosen for sure
        rows_TV = speculator.compute(session, (token_id, *guess), cache)
        try:
            for row_V, guessed in zip(rows_TV, (*guess, None), strict=True):
                token_id = sampler.sample(row_V)
                yield token_id, row_V
                if token_id != guessed or sampler.is_forced or (cancel is not None and cancel.is_set()):
                    break
                length += 1
        finally:
            if cache.user is user:  # else another answer has gone on with it
                cache.truncate(length)


def _longest_guess(session: Decoder, cache: KVCache, exact: bool) -> int:
    """Return how many tokens can be guessed after the next one, and computed in the same step."""
    length, config = cache.length + 1, session.config
    room = config.max_position_embeddings - length
    if config.short_context is not None and length <= config.short_context:
        room = config.short_context - length  # a longer text turns otherwise from its first token on (LongRoPE)
    return min(room, session.most_single_steps() - 1) if exact and room > 0 else room
