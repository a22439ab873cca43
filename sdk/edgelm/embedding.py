"""Embedding: a text as one vector, from what a model keeps of it for its own attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ContextLengthError
from edgelm.generate import prefill

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

# On 16 pairs of related sentences, SmolLM2-135M finds 31 of 32 partners with the last four layers' values or with all
# layers', 30 with the last layer's, 29 with the middle one's, 8 with the first's (docs/results/embeddings.md).
_LAYERS = 4


def embed(model: LanguageModel, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the embedding of a text: float32 [E] of length 1, for E = 4 layers x K kv heads x H head dim.

    A package's graph gives logits and no hidden states, but its KV cache holds each token's values: a linear reading of
    the hidden state before the layer's attention. The embedding is their mean over the tokens, in the last four layers.
    It tells related texts from others; a model that was trained for that does it better.

    Raises:
        ContextLengthError: the text has no tokens, or does not fit the model's context.
    """
    if not token_ids:
        raise ContextLengthError("The text has no tokens; an embedding needs one at least.")
    cache = model.session.new_cache()
    prefill(model.session, token_ids, cache)
    values = cache.buffers[1::2][-_LAYERS:]
    embedding_E = np.concatenate([value[0, :, : cache.length].mean(axis=1).ravel() for value in values])
    unit_E: NDArray[np.float32] = embedding_E / np.linalg.norm(embedding_E)
    return unit_E
