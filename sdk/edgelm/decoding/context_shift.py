"""Context shift: what a model reads of a text that is longer than its context.

The first tokens stay. Of the others, the oldest go, half the room at a time, until the rest fits. What is left is
computed anew: cached keys are turned by their old positions, and cached values have seen what went, so that moving them
(as StreamingLLM and llama.cpp do) would give what no text gives, and for rotary positions alone. This way every token
is the one that follows the text that is left, with any kind of positions, for one prefill of half a context in half a
context of answer. The first tokens may be a few attention sinks (arXiv:2309.17453), or a system message.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgelm.errors import ConfigError


def fitted(token_ids: Sequence[int], keep: int, context_length: int) -> Sequence[int]:
    """Return what is read of a text: all of it, or its first `keep` tokens and the newest of the others.

    How much goes depends on the text's length alone, and the same of a text goes as it grows until it is too long
    again: a conversation that is read turn by turn is computed anew only then.

    Raises:
        ConfigError: `keep` is more than half of the context.
    """
    if keep > context_length // 2:
        raise ConfigError(
            f"The first {keep} tokens are to stay of a text that outgrows the context of {context_length}; "
            f"{context_length // 2} can. Of a conversation these are its system message and tools: shorten them, or "
            "the rest. Where a context_shift was given, lower that."
        )
    step = (context_length - keep) // 2
    dropped = -(-max(0, len(token_ids) - context_length) // step) * step
    return token_ids if not dropped else [*token_ids[:keep], *token_ids[keep + dropped :]]
