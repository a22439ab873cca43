"""RunningBatch: the requests that an engine computes now, some filling their prompt, the others a token at a time."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.batching.request import Request
from edgelm.completion import FinishReason
from edgelm.decoding.beam_search import BeamSearch
from edgelm.decoding.context_shift import fitted
from edgelm.decoding.draft_length import StepCosts, StepPlan
from edgelm.decoding.generate import Decoder, compute_piece, computed_together
from edgelm.errors import OutOfMemoryError
from edgelm.memory.cache_layout import state_tokens
from edgelm.memory.kv_batch import MOST_SHOWN, KVBatch, KVRow, longest_row
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.runtime.stop_switch import StoppedError, StopSwitch

# Beside others, a prompt is computed in smaller pieces: they wait half as long, for 6 % of a short prompt's speed and a
# quarter of a 2,000-token prompt's (docs/results/batching.md).
SHARED_CHUNK = 64


class RunningBatch:
    """Compute requests together, each with the tokens that it would have alone.

    For one thread. `put_back` are the requests that lost their rows, for the engine to start again. `preempted` counts
    those that lost them because the memory was full, the other counts are of tokens.
    """

    def __init__(self, session: Decoder, prefixes: PrefixCache, max_tokens: int, row_costs: StepCosts) -> None:
        self._session, self._prefixes, self._max_tokens = session, prefixes, max_tokens
        self._row_costs = row_costs
        self._state_tokens = state_tokens(session.config)
        self._batch = KVBatch(session.config)
        self._filling: deque[Request] = deque()
        self._decoding: dict[int, Request] = {}  # by number
        self._searching: dict[int, tuple[Request, BeamSearch]] = {}  # by number too
        self._piece: tuple[Request, StopSwitch] | None = None  # of a prompt, being computed
        self._went_ahead = False
        self.put_back: list[Request] = []
        self.preempted = self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0

    @property
    def requests(self) -> list[Request]:
        """All requests at work; other threads may ask too."""
        searching = [*self._searching.values()]  # at once: during a comprehension the worker may change the dictionary
        return [*self._filling, *self._decoding.values(), *(request for request, _ in searching)]

    @property
    def tokens(self) -> int:
        """How many tokens the rows have, or will have when all prompts are computed; states count as theirs."""
        return sum((request.length + self._state_tokens) * request.rows for request in self.requests)

    def has_room_for(self, request: Request) -> bool:
        """Tell whether a request fits the memory beside the others, with a new token for each.

        A search that lost its rows needs room to get further than it did: it would lose them there again. A request
        that the system had no memory for waits until it is alone.
        """
        if request.needs_all_memory:
            return not self._batch.rows
        room = self._max_tokens - self.tokens - len(self._batch.rows)
        wanted = max(request.length, request.lost_at) + self._state_tokens + 1
        return not self._batch.rows or wanted * request.rows <= room

    def add(self, request: Request) -> None:
        """Start a request, or start it again after it lost its row."""
        self._filling.append(request)  # first of all, so that a failure reaches its reader too
        try:
            request.row = self._batch.add()
        except OutOfMemoryError as error:
            self._give_way(request, error)
            return
        request.row.use_adapter(request.answer.config.adapter)
        self._session.adopt(request.row)
        request.adapter_user = None
        request.computed = 0
        if request.prefilled is None:
            request.cached_tokens = request.prefill_tokens = 0
        if request.started is None:
            request.started = time.perf_counter()

    def drop(self, request: Request) -> None:
        """End a request that nobody waits for any more."""
        self._finish(request, request.answer.rest(), "cancelled")

    def put_aside(self, request: Request) -> None:
        """Take a request's rows, and put it back."""
        request.use_adapter(self._session)
        self._remove(request)
        self.put_back.append(request)

    def relieve(self, error: OutOfMemoryError) -> None:
        """Take the memory of the least and youngest request, where the system had none for the next keys and values.

        Nothing was computed then: the others go on. The last one that is left, and began with all of the memory, ends
        with the error.
        """
        traceback.clear_frames(error.__traceback__)
        if requests := self.requests:
            self._give_way(max(requests, key=lambda request: request.rank), error)

    def _give_way(self, request: Request, error: OutOfMemoryError) -> None:
        if self.requests == [request] and (request.needs_all_memory or request.row is None):
            self._fail_one(request, error)
            return
        request.needs_all_memory = True
        self.put_aside(request)
        self.preempted += 1
        self._prefixes.clear()

    def fail(self, error: Exception) -> None:
        """End all requests with an error, and give their memory back."""
        traceback.clear_frames(error.__traceback__)  # whoever keeps the error keeps those, and the memory in them
        requests = self.requests
        self._batch.clear()
        self._filling.clear()
        self._decoding.clear()
        self._searching.clear()
        for request in requests:
            request.row = None
            request.end(error)

    def interrupt(self, prompt_tokens: int | None = None) -> None:
        """Stop the piece of a prompt that is being computed, from any thread, if it is nobody's any more, or for the
        sake of a much shorter prompt, whose length is given; the piece is computed again later.
        """
        piece = self._piece
        if piece is None:
            return
        request, switch = piece
        is_short = prompt_tokens is not None and prompt_tokens <= SHARED_CHUNK and not request.made_way
        if is_short or request.is_over:
            request.made_way = True
            switch.press()

    def step(self) -> None:
        """Compute the next piece of one prompt, and the next token of every answer."""
        if self._filling:
            self._fill()
        self._make_room()
        for request in list(self._decoding.values()):
            while request.number in self._decoding and len(request.next_call) > 1:
                self._compute_alone(request)
                self._make_room()
        lone = self.requests[0] if len(self.requests) == 1 and self._decoding else None
        if lone is not None and self._may_guess(lone) and not lone.answer.config.exact_speculation:
            self._speculate(lone)
        elif self._batch.active:
            self._step_rows()
        for request in self._decoding.values():
            self._prefixes.slide(request.own_row, self._computed_together(request))

    def _step_rows(self) -> None:
        """Compute the next token of every answer, and of every beam of a search."""
        guesses = self._guesses()
        searches = [search for _, search in self._searching.values()]
        next_ids: dict[KVRow, int] = {beam.row: beam.token_ids[-1] for search in searches for beam in search.beams}
        for request in self._decoding.values():
            next_ids[request.own_row] = request.next_call[0]
        if not (rows := self._batch.rows[: self._batch.active]):
            return
        # First: where there is no memory, no row has its token yet, also where a graph computes one after the other.
        self._batch.reserve(max(row.length for row in rows) + 1)
        bound, started = len(self._batch.bindings), time.perf_counter()
        logits_NV = self._session.forward_rows(
            [next_ids[row] for row in rows], self._batch, [guesses.get(row, []) for row in rows]
        )
        if guesses and len(self._batch.bindings) == bound:  # a step that binds says nothing of the next one's time
            self._row_costs.add(len(logits_NV), time.perf_counter() - started)
        logits_of = dict(zip(rows, logits_NV, strict=False))
        behind = iter(logits_NV[len(rows) :])  # none where the system has not the memory for guesses
        guessed = {row: [*zip(guesses.get(row, ()), behind, strict=False)] for row in rows}
        for request in list(self._decoding.values()):
            self._take_step(request, logits_of[request.own_row], guessed[request.own_row])
        for request, search in list(self._searching.values()):
            self._search(request, search, np.stack([logits_of[beam.row] for beam in search.beams]))

    def _guesses(self) -> dict[KVRow, list[int]]:
        """Guess for each answer that may guess what follows its next token, as many tokens as pay in a step of all."""
        guessing = [request for request in self._decoding.values() if self._may_guess(request)]
        most = self._session.most_single_steps() if guessing else 1
        if most == 1 or not self._batch.mirror():
            return {}
        guesses: dict[KVRow, list[int]] = {}
        plan = StepPlan(self._row_costs, self._batch.active, self._batch.active)
        room = self._max_tokens - self.tokens
        for request in guessing:
            longest = min(room, longest_row(self._session.config) - request.length, request.answer.sampler.room - 1)
            assert request.answer.speculator is not None
            try:
                guess, plan = request.answer.speculator.guess_beside(
                    plan, min(longest, most - 1, MOST_SHOWN - plan.computed)
                )
            except OutOfMemoryError as error:
                self._give_way(request, error)
            except MemoryError:
                raise
            except Exception as error:  # of its draft
                self._fail_one(request, error)
            else:
                guesses[request.own_row] = guess
                room -= len(guess)
        return guesses

    def _take_step(
        self, request: Request, logits_V: NDArray[np.float32], guessed: Sequence[tuple[int, NDArray[np.float32]]]
    ) -> None:
        """Choose the next token of an answer, and those after it while they are the guessed ones; wrong ones leave."""
        row = request.own_row
        row.truncate(row.length - len(guessed))
        request.computed += 1
        self._advance(request, logits_V)
        for id_, row_V in guessed:
            if request.number not in self._decoding or request.next_call != (id_,):
                return
            row.extend((id_,))
            request.computed += 1
            self._advance(request, row_V)

    def _search(self, request: Request, search: BeamSearch, logits_BV: NDArray[np.float32]) -> None:
        """Go on with a search, or begin it behind its prompt; its answer comes as a whole."""
        try:
            if search.beams:
                is_over = search.advance(logits_BV)
            else:
                is_over = search.begin(logits_BV[0], request.own_row, request.answer.sampler)
            request.length += 1
        except OutOfMemoryError as error:  # half of its beams are placed: it begins again
            self._give_way(request, error)
        except BaseException as error:  # as in _advance
            self._fail_one(request, error)
        else:
            if is_over and not any(self._take(request, *token) for token in search.answer):
                self._finish(request, request.answer.rest(), "length")

    def _fill(self) -> None:
        request = self._next_to_fill()
        row, prompt_ids = request.own_row, request.prompt_ids
        try:
            together = computed_together(self._session, row, prompt_ids)
            # Before each piece: another request with the same beginning may have computed it meanwhile.
            cached = self._prefixes.extend(row, together)
            self.cached_tokens += cached
            if request.prefilled is None:
                request.cached_tokens += cached
            shared_chunk = None if len(self._batch.rows) == 1 else SHARED_CHUNK
            switch, before = StopSwitch(), row.length
            self._piece = request, switch
            try:
                logits_V = compute_piece(self._session, prompt_ids, row, shared_chunk=shared_chunk, stop=switch)
            finally:
                self._piece = None
            request.made_way = False
            self.prompt_tokens += row.length - before
            if request.prefilled is None:
                request.prefill_tokens += row.length - before
            self._prefixes.keep(row, len(together))
            row.slide()
            self._filling.remove(request)
            self._filling.append(request)
            if logits_V is None:
                return
        except StoppedError:
            return
        except MemoryError:
            raise
        except Exception as error:
            self._fail_one(request, error)
            return
        if request.prefilled is None:
            request.prefilled = time.perf_counter()
        if request.answer.config.num_beams > 1:
            self._filling.remove(request)
            search = request.answer.beam_search(self._batch)
            self._searching[request.number] = request, search
            self._search(request, search, logits_V[None])
            return
        self._batch.activate(row)
        self._filling.remove(request)
        self._decoding[request.number] = request
        self._advance(request, logits_V)

    def _computed_together(self, request: Request) -> int:
        """Count the tokens of a request's prompt that the prefix cache may take for a prompt's."""
        return len(computed_together(self._session, request.own_row, request.prompt_ids))

    def _next_to_fill(self) -> Request:
        """Choose whose prompt goes on: each in turn, but every other time one that a single piece completes."""
        first = self._filling[0]
        if not self._went_ahead:
            for request in self._filling:
                if request.row is not None and len(request.prompt_ids) - request.row.length <= SHARED_CHUNK:
                    self._went_ahead = request is not first
                    return request
        self._went_ahead = False
        return first

    def _compute_alone(self, request: Request) -> None:
        """Compute a token, and with it those that a constraint forced after it."""
        call = request.next_call
        rows_TV = self._session.forward(call, request.own_row, all_logits=True)
        request.computed += 1
        if request.computed > request.taken:
            request.taken = request.computed
            for id_, logits_V in zip(call[1:], rows_TV, strict=False):
                if self._take(request, id_, logits_V):
                    return
        self._advance(request, rows_TV[-1])

    def _may_guess(self, request: Request) -> bool:
        """Tell whether tokens may be guessed here: not those of a request that catches up with what it had before."""
        return request.answer.speculator is not None and request.computed == len(request.calls) - 1

    def _speculate(self, request: Request) -> None:
        """Compute the next token of the only request, and tokens guessed after it, in one call."""
        row, speculator = request.own_row, request.answer.speculator
        assert speculator is not None
        length = row.length + 1  # with the tokens that are chosen for sure
        room = min(longest_row(self._session.config), self._max_tokens) - request.length
        guess = speculator.guess(min(room, request.answer.sampler.room - 1))
        rows_TV = speculator.compute(self._session, (*request.next_call, *guess), row)
        for row_V, guessed in zip(rows_TV, (*guess, None), strict=True):
            request.computed += 1
            self._advance(request, row_V)
            if request.number not in self._decoding:
                return
            if request.next_call != (guessed,):
                break
            length += 1
        row.truncate(length)

    def _advance(self, request: Request, logits_V: NDArray[np.float32]) -> None:
        """Choose the next token of an answer, unless it is catching up with what it had before it lost its row."""
        if request.computed < len(request.calls):
            return
        answer, room = request.answer, longest_row(self._session.config) - request.length
        most = min(room, self._max_tokens - self._state_tokens - request.length) - 1
        try:
            id_ = answer.sampler.sample(logits_V)
            text, reason = answer.take(id_, logits_V)
            forced = [] if reason is not None else answer.sampler.forced_tokens(most)
        except BaseException as error:  # it belongs to whoever reads this answer, sys.exit() too; the others go on
            self._fail_one(request, error)
            return
        if self._give(request, text, reason):
            return
        if room > 0:
            request.append((id_, *forced))
        elif answer.keep is not None:
            self._shift(request, id_, answer.keep)
        else:
            self._finish(request, answer.rest(), "length")

    def _shift(self, request: Request, id_: int, keep: int) -> None:
        """Let a request whose context is full fill its row anew, with what is left of its text."""
        text = [*request.own_row.token_ids[: request.length], id_]
        left = fitted(text, keep, longest_row(self._session.config))  # first: where that fails, it is still in a list
        request.use_adapter(self._session)
        self._remove(request)
        request.begin_with(left)
        self.add(request)

    def _take(self, request: Request, id_: int, logits_V: NDArray[np.float32]) -> bool:
        """Give a token to its answer; return whether the answer ends with it."""
        try:
            text, reason = request.answer.take(id_, logits_V)
        except BaseException as error:  # as in _advance
            self._fail_one(request, error)
            return True
        return self._give(request, text, reason)

    def _give(self, request: Request, text: str, reason: FinishReason | None) -> bool:
        """Give a token's text to the reader; return whether the answer ends with it."""
        self.generated_tokens += 1
        if reason is not None:
            self._finish(request, text, reason)
            return True
        if text:
            request.generation.put(request.answer.chunk(text))
        return False

    def _make_room(self) -> None:
        """Take the rows of the least and youngest requests where the next tokens would not fit the memory."""
        while self.tokens > self._max_tokens:
            last = max(self.requests, key=lambda request: request.rank)
            if len(self.requests) == 1:
                self._finish(last, last.answer.rest(), "length")
            else:
                self.put_aside(last)
                self.preempted += 1

    def _finish(self, request: Request, text: str, reason: FinishReason) -> None:
        chunk = request.last_chunk(text, reason)
        self._remove(request)
        request.end(chunk)

    def _fail_one(self, request: Request, error: BaseException) -> None:
        self._remove(request)
        request.end(error)

    def _remove(self, request: Request) -> None:
        is_filling = request in self._filling
        if request.row is not None and not is_filling and not request.needs_all_memory:  # what others are to have
            self._prefixes.keep(request.row, self._computed_together(request))
        if request.number in self._searching:
            self._searching[request.number][1].leave()
        if request.row is not None:
            self._batch.remove(request.row)
            request.row = None
        # Last: where something of this fails, the request is still among those that end with the error.
        if is_filling:
            self._filling.remove(request)
        self._decoding.pop(request.number, None)
        if self._searching.pop(request.number, None) is not None:
            request.lost_at = request.length
            request.begin_with(request.prompt_ids)  # nothing of it was given out: it can begin again
