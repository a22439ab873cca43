"""Scoring: how likely a model finds a text, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgelm.completion import Scores, TokenLogprob
from edgelm.decoding.answer import describe_token
from edgelm.decoding.generate import Decoder
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.out_of_memory import memory_errors_told
from edgelm.runtime.session import PREFILL_CHUNK
from edgelm.text.tokenizer import Tokenizer


@memory_errors_told()
def score(
    session: Decoder, tokenizer: Tokenizer, token_ids: Sequence[int], cache: KVCache, alternatives: int
) -> Scores:
    """Return what LanguageModel.score does; `cache` is an empty one."""
    cache.reserve(len(token_ids))  # with LongRoPE, a text turns by how long it is to be
    tokens: list[TokenLogprob] = []
    for start in range(0, len(token_ids) - 1, PREFILL_CHUNK):
        logits_TV = session.forward(token_ids[start : start + PREFILL_CHUNK], cache, all_logits=True)
        targets = token_ids[start + 1 : start + 1 + PREFILL_CHUNK]
        tokens += [
            describe_token(tokenizer, row_V, id_, alternatives) for row_V, id_ in zip(logits_TV, targets, strict=False)
        ]
    perplexity = float(np.exp(-np.mean([token.logprob for token in tokens])))
    return Scores(tokens=tuple(tokens), perplexity=perplexity)
