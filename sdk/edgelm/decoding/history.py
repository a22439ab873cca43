"""History: what stands before the next token of an answer, as penalties and bans read it. V is the vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgelm.decoding.ngrams import Followers, NGrams, followers


@dataclass(frozen=True, kw_only=True)
class History:
    """Rows [V] of the tokens of prompt and answer, and of the answer's counts; and the tokens in order.

    token_ids: prompt and answer; the first `prompt_tokens` are the prompt's. breakers: the tokens that a repeated
    sequence does not go across. end_ids: those that end the answer. ngrams: None where they may come again.
    in_source: what comes behind sequences of a source that the answer may not have.
    """

    seen: NDArray[np.bool_]
    counts: NDArray[np.float32]
    token_ids: list[int]
    prompt_tokens: int
    breakers: Collection[int]
    end_ids: Collection[int]
    ngrams: NGrams | None
    in_source: Followers

    @classmethod
    def of_prompt(
        cls,
        prompt_ids: Sequence[int],
        vocab_size: int,
        *,
        ngram_size: int = 0,
        breakers: Collection[int] = (),
        end_ids: Collection[int] = (),
        source_ids: Sequence[int] = (),
        source_ngram_size: int = 0,
    ) -> History:
        """Return what stands before an answer's first token.

        ngram_size, source_ngram_size: how many tokens of it, or of a source, may not come again; 0 is any.
        """
        seen_V = np.zeros(vocab_size, np.bool_)
        seen_V[np.asarray(prompt_ids, np.int64)] = True
        return cls(
            seen=seen_V,
            counts=np.zeros(vocab_size, np.float32),
            token_ids=list(prompt_ids),
            prompt_tokens=len(prompt_ids),
            breakers=breakers,
            end_ids=end_ids,
            ngrams=NGrams(ngram_size, prompt_ids) if ngram_size else None,
            in_source=followers(source_ngram_size, source_ids) if source_ngram_size else {},
        )

    def add(self, token_id: int) -> None:
        """Take the answer's next token."""
        self.seen[token_id] = True
        self.counts[token_id] += 1
        self.token_ids.append(token_id)
        if self.ngrams is not None:
            self.ngrams.add(token_id)

    def copy(self) -> History:
        """Return one that goes on by itself."""
        return replace(
            self,
            seen=self.seen.copy(),
            counts=self.counts.copy(),
            token_ids=list(self.token_ids),
            ngrams=self.ngrams and self.ngrams.copy(),
        )
