"""Beam search: the likeliest whole answer that is found by going on with the best few beginnings at every step.

The rules are those of transformers' `generate(num_beams=…)` with its default `early_stopping=False`, so the answers and
scores are the same. The score of an answer is the sum of its tokens' log-probabilities over length ** length_penalty,
where the length counts a forced first token (of probability 1) too.
Of a step's candidates, those that end count if they are among the best `num_beams`. The search is over when the best
beginning, at its present length, is no better than the worst of `num_beams` answers. Shapes: B beams, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from edgelm.decoding.generate import Decoder
from edgelm.decoding.sampling import Sampler
from edgelm.generation_config import GenerationConfig
from edgelm.memory.kv_batch import KVBatch, KVRow, longest_row
from edgelm.memory.kv_cache import KVCache

_NO_LOGITS = np.empty(0, np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class Beam:
    """A beginning of an answer, or a whole one.

    total: the sum of its tokens' log-probabilities. row: what holds the prompt and all of its tokens but the last.
    sampler: what has chosen all but the last. logits: those that each token was chosen by, where they are wanted.
    """

    token_ids: tuple[int, ...] = ()
    total: float = 0.0
    row: KVRow
    sampler: Sampler
    logits: tuple[NDArray[np.float32], ...] = ()


class BeamSearch:
    """Search for one answer, a step at a time: `begin`, then `advance` with the logits of `beams`, until it is over.

    batch: where the beams have their rows, beside those of others. ends: whether an answer is over with the last of
    these tokens. end_tokens: how many tokens end one by themselves; with so many more candidates, `num_beams` of them
    go on. forced: how many tokens of the answer stand in the prompt already, such as a translation's language.
    """

    def __init__(
        self,
        config: GenerationConfig,
        ends: Callable[[Sequence[int]], bool],
        end_tokens: int,
        batch: KVBatch,
        forced: int = 0,
    ) -> None:
        self._config, self._ends, self._batch, self._forced = config, ends, batch, forced
        self._candidates = max(2, 1 + end_tokens) * config.num_beams
        self._found: list[Beam] = []  # best first
        self._rows: list[KVRow] = []  # of this search
        self.beams: list[Beam] = []  # in the order of their rows, each with one of its own

    def run(
        self,
        session: Decoder,
        logits_V: NDArray[np.float32],
        cache: KVCache,
        sampler: Sampler,
        cancel: threading.Event | None = None,
    ) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
        """Yield the tokens of the best answer, as `generate.decode` does; none where `cancel` was set before its end.

        The rows of the batch are this search's alone.
        """
        try:
            is_over = self.begin(logits_V, cache, sampler)
            while not is_over:
                if cancel is not None and cancel.is_set():
                    return
                is_over = self.advance(session.forward_rows([beam.token_ids[-1] for beam in self.beams], self._batch))
        finally:
            self.leave()  # rows and their batch hold each other, and much memory
        yield from self.answer

    def begin(self, logits_V: NDArray[np.float32], cache: KVCache, sampler: Sampler) -> bool:
        """Take the logits behind the prompt, which `cache` holds; tell whether the search is over.

        The cache holds the best answer so far, but for its last token, whenever there is one.
        """
        limit = longest_row(self._batch.config)
        self._cache = cache
        self._most = min(self._config.max_new_tokens or limit, limit - cache.length + 1)
        self.beams = [Beam(row=self._new_row(cache), sampler=sampler)]
        return self.advance(logits_V[None])

    def advance(self, logits_BV: NDArray[np.float32]) -> bool:
        """Take the logits of the beams, in their order, and choose the next ones; tell whether the search is over."""
        best = self._found[:1]
        going_on: list[Beam] = []
        for place, beam in enumerate(self._continued(self.beams, logits_BV)):
            if len(beam.token_ids) == self._most or self._ends(beam.token_ids):
                self._found += [beam] if place < self._config.num_beams else []
            elif len(going_on) < self._config.num_beams:
                going_on.append(beam)
        self._found = sorted(self._found, key=self._score, reverse=True)[: self._config.num_beams]
        if self._found[:1] != best:  # copied before its row holds another beam's tokens
            self._cache.copy_from(self._found[0].row)
        is_full = len(self._found) == self._config.num_beams
        if not going_on or (is_full and self._score(going_on[0]) <= self._score(self._found[-1])):
            return True
        self.beams = self._placed(going_on)
        return False

    @property
    def answer(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The tokens of the best answer, when the search is over.

        Their logits are those of the search where the config asks for logprobs, and empty otherwise.
        """
        best = self._found[0]
        return zip(best.token_ids, best.logits or repeat(_NO_LOGITS), strict=False)

    def leave(self) -> None:
        """Give the rows of the beams back to the batch."""
        for row in self._rows:
            self._batch.remove(row)
        self.beams, self._rows = [], []

    def _score(self, beam: Beam) -> float:
        """Return what answers of different lengths are compared by."""
        return float(beam.total / (self._forced + len(beam.token_ids)) ** self._config.length_penalty)

    def _continued(self, beams: Sequence[Beam], logits_BV: NDArray[np.float32]) -> list[Beam]:
        """Return the best candidates of all that are one token longer, best first."""
        samplers = [beam.sampler.after(beam.token_ids[-1]) if beam.token_ids else beam.sampler for beam in beams]
        totals_BV = np.stack(
            [
                sampler.log_probabilities(row_V) + np.float64(beam.total)
                for beam, sampler, row_V in zip(beams, samplers, logits_BV, strict=True)
            ]
        )
        flat, V = totals_BV.ravel(), totals_BV.shape[1]
        count = min(self._candidates, int((flat > -np.inf).sum()))
        chosen = np.argpartition(-flat, count - 1)[:count]
        with_logits = self._config.logprobs is not None
        kept = [row_V.copy() for row_V in logits_BV] if with_logits else []
        candidates = []
        for place in chosen[np.lexsort((chosen, -flat[chosen]))].tolist():
            b, token_id = divmod(place, V)
            candidates.append(
                Beam(
                    token_ids=(*beams[b].token_ids, token_id),
                    total=float(flat[place]),
                    row=beams[b].row,
                    sampler=samplers[b],
                    logits=(*beams[b].logits, kept[b]) if with_logits else (),
                )
            )
        return candidates

    def _placed(self, beams: Sequence[Beam]) -> list[Beam]:
        """Give each beam a row of its own, in the order of the rows; the first child of a row goes on in it."""
        rows = {beam.row for beam in beams}
        spare = [beam.row for beam in self.beams if beam.row not in rows]
        placed = []
        for beam in beams:
            row = beam.row
            if row in rows:
                rows.remove(row)
            elif spare:
                row = spare.pop()
                row.copy_from(beam.row)
            else:
                row = self._new_row(beam.row)
            placed.append(replace(beam, row=row))
        for row in spare:
            self._rows.remove(row)
            self._batch.remove(row)
        return sorted(placed, key=lambda beam: beam.row.place)

    def _new_row(self, source: KVCache) -> KVRow:
        row = self._batch.add()
        self._rows.append(row)  # before it is filled: where there is no memory for that, `leave` gives it back
        self._batch.activate(row)
        row.copy_from(source)
        return row
