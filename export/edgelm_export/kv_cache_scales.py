"""Keys and values in 8 bits: a finished graph's attention given a scale for each of their channels.

A channel is one dimension of one kv head of one layer, before a token's keys and values are written. One scale for all
costs a third more perplexity (docs/results/quantization.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.decoding.generate import prefill
from edgelm.runtime.session import DecoderSession
from edgelm_export.checkpoints.checked import Progress
from edgelm_export.checkpoints.folded import padded_rotary_dim
from edgelm_export.graph.graph import INT8

_LARGEST = 127
# What the calibration text does not reach: another text's sizes, which are clipped beyond it.
_MARGIN = np.float32(1.05)
_SMALLEST = np.float32(1e-8)  # of a channel that is always zero
_PLACES = (12, 13)  # of the scales among GroupQueryAttention's inputs
_PAST_KEYS, _PRESENT_KEYS = 3, 1  # among its inputs and outputs


def measure_scales(
    folder: Path, sequences: Sequence[Sequence[int]], progress: Progress | None = None
) -> list[NDArray[np.float32]]:
    """Run a package that keeps float keys and values on a text: scales [K, 1, H], in the order of a cache's buffers.

    What the graph itself keeps is measured, with its rotation, its order of dimensions and all that is folded into its
    weights. progress: called with "cache scales", how many sequences have been run, and how many there are.
    """
    report = progress or (lambda *_: None)
    session = DecoderSession(folder, ModelConfig.load(folder))
    largest: list[NDArray[np.float32]] = []
    for number, ids in enumerate(sequences):
        report("cache scales", number, len(sequences))
        cache = session.new_cache()
        prefill(session, ids, cache)
        kept = cache.buffers[: 2 * len(session.config.cached_layers)]  # behind them are the convolutions'
        sizes = [_sizes(session.config, i, buffer[0, :, : cache.length]) for i, buffer in enumerate(kept)]
        largest = [np.maximum(*pair) for pair in zip(largest, sizes, strict=True)] if largest else sizes
    report("cache scales", len(sequences), len(sequences))
    return [np.maximum(size * _MARGIN / _LARGEST, _SMALLEST) for size in largest]


def _sizes(config: ModelConfig, i: int, filled_KTH: NDArray[Any]) -> NDArray[np.float32]:
    """Return how large each channel [K, 1, H] of a cache's buffer i can become with the keys or values of a text.

    A key turns with its position, in pairs of dimensions: somewhere in the context, each of the two is as large as the
    pair is long, however far the text itself reaches.
    """
    sizes_KTH: NDArray[np.float32] = np.abs(filled_KTH)
    kind = config.rope_kind(config.cached_layers[i // 2])
    if i % 2 == 0 and kind is not None:
        # As the graph has them (folded.py): behind each half of what turns may be what fills it up.
        pairs, half = config.turning_dim(kind) // 2, padded_rotary_dim(config, kind) // 2
        first, second = (slice(start, start + pairs) for start in (0, half))
        sizes_KTH[..., first] = sizes_KTH[..., second] = np.hypot(filled_KTH[..., first], filled_KTH[..., second])
    sizes_K1H: NDArray[np.float32] = sizes_KTH.max(axis=1, keepdims=True)
    return sizes_K1H


def keep_in_int8(model: onnx.ModelProto, scales: Sequence[NDArray[np.float32]]) -> None:
    """Let a graph of ours keep int8 keys and values, by the scales of `measure_scales`.

    Source: GroupQueryAttention in onnxruntime's ContribOperators.md.
    """
    graph = model.graph
    for value in (*graph.input, *graph.output):
        if value.name.endswith((".key", ".value")):
            value.type.tensor_type.elem_type = INT8
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    pairs = iter(zip(scales[::2], scales[1::2], strict=True))
    named: dict[str, list[str]] = {}  # by the keys that they are of
    for node in attention:
        node.input.extend([""] * (_PLACES[0] - len(node.input)))
        keys = node.input[_PAST_KEYS]
        if keys not in named:  # otherwise they are those of a layer before
            keys, module = node.output[_PRESENT_KEYS], node.name.removesuffix(".output")
            named[keys] = [f"{module}.{part}_scale" for part in "kv"]
            stored = map(onnx.numpy_helper.from_array, next(pairs), named[keys])
            graph.initializer.extend(stored)
        node.input.extend(named[keys])
        for part in "kv":
            node.attribute.append(onnx.helper.make_attribute(f"{part}_quant_type", "PER_CHANNEL"))
        node.attribute.append(onnx.helper.make_attribute("kv_cache_bit_width", 8))
