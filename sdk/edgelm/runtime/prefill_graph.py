"""The prefill graph: the graph of a package that reads prompts into a cache, in ONNX Runtime.

It gives the keys and values that the decoder's graph goes on from, faster and a little less precisely, and no logits.
Floats are written in place; beside int8, it gives those of the new tokens. Shapes: B batch, T query tokens, C capacity
of the cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import PackageError
from edgelm.memory.kv_cache import KVCache
from edgelm.runtime.binding import Graph
from edgelm.runtime.decoder_graph import GraphValue
from edgelm.runtime.stop_switch import StopSwitch

_INT8 = "tensor(int8)"
_OF_THE_HEAD = {"num_logits_to_keep"}  # of a decoder's inputs, what is there for its logits


def read_prompt(graph: Graph, token_ids: Sequence[int], cache: KVCache, stop: StopSwitch | None) -> None:
    """Write the keys and values of T tokens behind those in `cache`, which has room for them, and on which the
    decoder's graph works in place.

    graph: in ONNX Runtime, with the decoder's facts: both have the same names for the cache.

    Raises:
        StoppedError: `stop` was pressed.
    """
    facts = graph.facts
    first, length = cache.length, cache.length + len(token_ids)
    mask_BC = (np.arange(cache.capacity) < length)[None].astype(np.int64)
    inputs: dict[str, NDArray[Any]] = {"input_ids": np.array([token_ids], np.int64), "attention_mask": mask_BC}
    past, others = cache.buffers[: len(facts.past)], graph.others(cache.other_buffers, len(token_ids))
    # Of a cache in int8 the graph gives the new tokens' keys and values alone, which are copied here.
    gives_new_alone = facts.cache_type == np.int8
    present = [np.empty_like(buffer[:, :, first:length]) for buffer in past] if gives_new_alone else past
    inputs |= zip(facts.past, past, strict=True)
    outputs = dict(zip(facts.present, present, strict=True))
    for other in others:
        inputs, outputs = inputs | other.inputs, outputs | other.outputs
    binding = graph.session.io_binding()  # anew for each chunk, which takes much longer
    _values = graph.bind_arrays(binding, inputs, outputs)
    graph.run(binding, stop, others, (length,))
    if present is not past:
        for buffer, new in zip(past, present, strict=True):
            buffer[:, :, first:length] = new


def check_prefill_graph(
    path: Path,
    inputs: Iterable[GraphValue],
    outputs: Iterable[GraphValue],
    decoder_inputs: Iterable[GraphValue],
    decoder_outputs: Iterable[GraphValue],
) -> None:
    """Check that a graph takes and gives what the decoder's does, but for logits and hidden states; of int8, new ones.

    Raises:
        PackageError: names what differs.
    """
    decoders = _described(decoder_inputs, "takes"), _described(map(_new_alone, decoder_outputs), "gives")
    wanted = {key: value for key, value in decoders[0].items() if key[1] not in _OF_THE_HEAD}
    wanted |= {key: value for key, value in decoders[1].items() if key[1].startswith("present")}
    found = _described(inputs, "takes") | _described(outputs, "gives")
    differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if differing:
        verb, name = differing[0]
        raise PackageError(
            f"{path} {verb} {name!r} as {found.get(differing[0], 'nothing')}; beside this decoder it must be "
            f"{wanted.get(differing[0], 'nothing')}. Export or download the package again."
        )


def _new_alone(value: GraphValue) -> GraphValue:
    """Describe what a prefill graph gives in the place of a decoder's output."""
    if value.type != _INT8:
        return value
    return dataclasses.replace(value, shape=[*value.shape[:2], "tokens", *value.shape[3:]])


def _described(values: Iterable[GraphValue], verb: str) -> dict[tuple[str, str], str]:
    return {(verb, value.name): f"{value.type} {list(value.shape)}" for value in values}
