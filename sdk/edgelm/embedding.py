"""Embedding: a text as one vector, from what a model makes of its tokens.

D hidden, T tokens, E numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.decoding.generate import next_chunk
from edgelm.errors import ConfigError, ContextLengthError
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.out_of_memory import memory_errors_told
from edgelm.package.manifest import Manifest
from edgelm.runtime.session import PREFILL_CHUNK

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

Pooling = Literal["values", "mean", "last"]
# On 16 pairs of related sentences, SmolLM2-135M finds the partners of all 32 with the last four layers' values, of 26
# with the mean hidden state, of 24 with the last one (docs/results/embeddings.md).
DEFAULT_POOLING: Pooling = "values"
_LAYERS = 4


@memory_errors_told()
def embed(
    model: LanguageModel, token_ids: Sequence[int], pooling: Pooling = DEFAULT_POOLING, *, normalize: bool = True
) -> NDArray[np.float32]:
    """Return the embedding of a text: float32 [E], of length 1 where `normalize` is set.

    pooling: "mean" of the hidden states behind the last norm, or the "last" of them (E = D), as models that were
    trained for embeddings have it; or the mean of the "values" that the last four layers with some keep for attention
    (E = 4 layers x K kv heads x H head dim), which tells texts apart better where a model was trained to write.

    Raises:
        ConfigError: there is no such pooling, or the package has not what it is made of.
        ContextLengthError: the text has no tokens, or does not fit the model's context.
    """
    if pooling not in tuple(_POOLINGS):
        raise ConfigError(f"pooling is {pooling!r}; it must be one of {', '.join(_POOLINGS)}.")
    if not token_ids:
        raise ContextLengthError("The text has no tokens; an embedding needs one at least.")
    if pooling != "values" and _is_rotated(model.manifest):
        raise ConfigError(
            f"pooling is {pooling!r}, and {model.name} has rotated weights, whose hidden states are not those that the "
            "model was trained to give. Take 'values', or export its source with a recipe without rotate."
        )
    if len(token_ids) > (most := model.context_length):
        raise ContextLengthError(
            f"The text has {len(token_ids)} tokens; this model's maximum context length is {most}. Shorten it."
        )
    embedding_E = _POOLINGS[pooling](model, token_ids)
    return embedding_E / np.linalg.norm(embedding_E) if normalize else embedding_E


def _is_rotated(manifest: Manifest) -> bool:
    """Tell whether a rotation is folded into a package, or into one that it was made of.

    The stream is turned then, and the last norm's weight is in the head: logits stay, what the head reads does not.
    """
    transforms: list[object] = [manifest.recipe_values("transform")]
    source: object = manifest.source
    while isinstance(source, Mapping):
        transforms.append(source.get("transforms"))
        source = source.get("exported_from")
    return any(isinstance(each, list) and "rotate" in each for each in transforms)


def _mean_values(model: LanguageModel, token_ids: Sequence[int]) -> NDArray[np.float32]:
    if model.config.kv_cache != "fp32":
        raise ConfigError(
            f"pooling is 'values', and this package keeps them in {model.config.kv_cache}. Take 'mean' or 'last', or a "
            "package with --kv-cache fp32."
        )
    cache = _cache_for(model, token_ids)
    while cache.length < len(token_ids):  # by the decoder's graph: a prefill graph's values are less precise
        model.session.forward(next_chunk(token_ids, cache.length), cache)
    config, parts = model.config, len(model.config.kept_parts)
    values = cache.buffers[: config.kept_buffers][parts - 1 :: parts][-_LAYERS:]
    first = -(config.kv_lora_rank or 0)  # with latent attention a token's values are the end of its keys
    return np.concatenate([value[0, :, : cache.length, first:].mean(axis=1).ravel() for value in values])


def _mean_hidden_state(model: LanguageModel, token_ids: Sequence[int]) -> NDArray[np.float32]:
    sums = [hidden_TD.sum(axis=0, dtype=np.float64) for hidden_TD in _hidden_states(model, token_ids)]
    mean_D: NDArray[np.float32] = (np.sum(sums, axis=0) / len(token_ids)).astype(np.float32)
    return mean_D


def _last_hidden_state(model: LanguageModel, token_ids: Sequence[int]) -> NDArray[np.float32]:
    last_D: NDArray[np.float32] = _hidden_states(model, token_ids)[-1][-1]
    return last_D


def _cache_for(model: LanguageModel, token_ids: Sequence[int]) -> KVCache:
    cache = model.new_cache()
    cache.reserve(len(token_ids))  # with LongRoPE, a text turns by how long it is to be
    return cache


def _hidden_states(model: LanguageModel, token_ids: Sequence[int]) -> list[NDArray[np.float32]]:
    cache = _cache_for(model, token_ids)
    return [
        model.session.forward_hidden(token_ids[start : start + PREFILL_CHUNK], cache)
        for start in range(0, len(token_ids), PREFILL_CHUNK)
    ]


_POOLINGS: dict[str, Callable[[LanguageModel, Sequence[int]], NDArray[np.float32]]] = {
    "values": _mean_values,
    "mean": _mean_hidden_state,
    "last": _last_hidden_state,
}
