"""SingleSteps: several tokens of one sequence in one call of the graph, each with the bits of a call of its own.

A call of several tokens takes another path through GroupQueryAttention than a call of one: sums in another order, which
the rounding of the layers' inputs makes into visible differences of the logits. But the rows of a batch take the path
of one token. So the tokens become rows, whose caches are one memory (`mirrored_memory`): the operator writes the keys
and values of all rows before it computes the attention of the first, and so each row finds those of the rows before it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.memory.kv_batch import KVRow
from edgelm.memory.kv_cache import KeysOrValues, KVCache
from edgelm.memory.mirrored_memory import MirroredBuffers, Row
from edgelm.memory.returned_memory import give_back
from edgelm.runtime.binding import InPlaceBinding

# Eight rows give eight tokens for the time of three; more gain little (docs/results/speculation.md).
MOST_ROWS = 8
_PROBE_START = 9  # tokens before the probe


# Of the buffers of B rows, and the adapter of each.
Bind = Callable[[list[KeysOrValues], list[str | None]], InPlaceBinding]


class _Mirror:
    """A cache whose buffers were moved into mirrored memory, and the graph bound to B of the rows."""

    def __init__(self, cache: KVCache) -> None:
        buffers = cache.buffers
        memory = MirroredBuffers([Row(buffer.shape[1:], buffer.dtype) for buffer in buffers], 1, MOST_ROWS)
        self.rows: list[KeysOrValues] = memory.show([0] * MOST_ROWS)
        cache.binding = None
        for i, mirrored in enumerate(memory.buffers):  # one after the other: only one buffer is in memory twice
            buffer = buffers[i]
            mirrored[:, :, cache.filled(i)] = buffer[:, :, cache.filled(i)]
            buffers[i] = mirrored
            give_back(buffer)
        self._buffer = weakref.ref(cache.buffers[0])
        self.steps: dict[tuple[int, str | None], InPlaceBinding] = {}  # by the number of rows, and their adapter

    def is_of(self, cache: KVCache) -> bool:
        """Whether the cache's buffers are still these: it makes others when it grows."""
        return self._buffer() is cache.buffers[0]


class SingleSteps:
    """Step several tokens of a cache at once, as many as give the bits of single steps here.

    How many that are depends on the kernels of this processor for the model's precision, so it is tried once, with
    random tokens. Where there is no mirrored memory, or the attention takes another way, it is one.
    """

    def __init__(self, config: ModelConfig, threads: int, bind: Bind) -> None:
        self._config, self._bind = config, bind
        self._mirrors: weakref.WeakKeyDictionary[KVCache, _Mirror] = weakref.WeakKeyDictionary()
        self._probing = threading.Lock()
        self._most: int | None = None if _may_step_together(config, threads) else 1  # None: not tried yet

    def most(self) -> int:
        """Return how many tokens of a text can be stepped at once."""
        with self._probing:
            if self._most is None:
                self._most = self._probe()
        return self._most

    def step(self, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.float32] | None:
        """Compute up to `most` tokens behind those in the cache, which has room for them; the caller adds their ids.

        Returns logits [T, V], which the next step of as many tokens overwrites, or None where there is no memory of
        the kind, or the cache is a row of a batch, which has its own.
        """
        if isinstance(cache, KVRow):
            return None
        mirror = self._mirrors.get(cache)
        if mirror is None or not mirror.is_of(cache):
            try:
                mirror = self._mirrors[cache] = _Mirror(cache)
            except OSError:
                self._most = 1
                return None
        count = len(token_ids)
        key = count, cache.adapter
        if key not in mirror.steps:
            mirror.steps[key] = self._bind([rows[:count] for rows in mirror.rows], [cache.adapter] * count)
        return mirror.steps[key].step(token_ids, range(cache.length + 1, cache.length + count + 1))

    def forget_bindings(self) -> None:
        """Forget what was bound to the graph, which is about to change; the caches keep their memory."""
        for mirror in self._mirrors.values():
            mirror.steps.clear()

    def _probe(self) -> int:
        """Find how many rows have the bits of single steps, up to the first count that has not."""
        cache = KVCache(self._config)
        if self._config.max_position_embeddings < _PROBE_START + MOST_ROWS:
            return 1
        cache.reserve(_PROBE_START + MOST_ROWS)
        generator = np.random.Generator(np.random.PCG64(0))
        ids = generator.integers(0, self._config.vocab_size, _PROBE_START + MOST_ROWS).tolist()
        if self._config.num_experts:
            # An expert computes its tokens together, and in floats with the bits of so many rows. Equal tokens choose
            # the same experts, so each of those gets as many rows as it ever will.
            ids[_PROBE_START:] = ids[-1:] * MOST_ROWS
        single_TV: list[NDArray[np.float32]] = []
        for id_ in ids:
            logits_TV = self.step((id_,), cache)
            if logits_TV is None:
                return 1
            cache.token_ids.append(id_)
            single_TV.append(logits_TV[0].copy())
        cache.truncate(_PROBE_START)
        loud = np.nan if self._config.kv_cache == "fp32" else np.iinfo(np.int8).max
        for count in range(2, MOST_ROWS + 1):
            for buffer in cache.buffers:
                buffer[:, :, _PROBE_START:] = loud  # a row that is read before it is written shows
            rows_TV = self.step(ids[_PROBE_START : _PROBE_START + count], cache)
            if rows_TV is None or not np.array_equal(rows_TV, single_TV[_PROBE_START : _PROBE_START + count]):
                return count - 1
        return MOST_ROWS


def _may_step_together(config: ModelConfig, threads: int) -> bool:
    """Tell whether rows may have the bits of single steps at all; on some processors they have not even then."""
    # ONNX Runtime computes these scores row after row, each with its keys and values, in threads that do not wait for
    # each other: it is chance whether a row finds what the rows before it write.
    if config.attn_logit_softcapping is not None or config.attention_sinks:
        return False
    # A convolution, and what keeps a state, reads what the row before it gives.
    if config.conv_channels or config.state_layers:
        return False
    # The weights of experts are one vector of all rows, whose end is computed by other instructions.
    if _routes_itself(config):
        return False
    # With more threads than heads, a row that is alone is split among them.
    if threads > min(map(config.query_heads, config.attention_layers)):
        return False
    return os.environ.get("ORT_GQA_DISABLE_FLASH_ATTENTION", "0") == "0"


def _routes_itself(config: ModelConfig) -> bool:
    """Tell whether a graph computes by what experts are chosen and weighted, not their operator."""
    is_plain = config.scoring_func == "softmax" and not config.expert_choice_bias and config.n_group == 1
    return config.num_experts > 0 and not (is_plain and config.norm_topk_prob)
