"""Architecture: how one model family's config and tensor names map to ours, as data and small functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class GGUFHeader:
    """What a GGUF file says of its model before any large tensor is read.

    shapes: the tensors by GGUF name, each in numpy's order (rows first). rope_factors: the tensor
    `rope_freqs.weight` [H/2], by which llama.cpp divides each rotary frequency, where the file has one.
    """

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    rope_factors: NDArray[np.float32] | None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row of `ARCHITECTURES`.

    The name tables map a canonical name without its `.weight` or `.bias` to the source's, with `{i}` for the layer.

    to_model_config: reads config.json's values; raises CheckpointError where a feature is not supported.
    ignored_tensors: names of a source that hold no weights, with `{i}` for the layer.
    gguf_to_hf_config: makes config.json's values of a GGUF header, so that both ways meet in `to_model_config`.
    gguf_interleaved: canonical names whose rows llama.cpp stores with the two halves of a rotated head interleaved.
    """

    model_type: str
    to_model_config: Callable[[Mapping[str, Any]], ModelConfig]
    tensor_names: Mapping[str, str]
    ignored_tensors: frozenset[str] = frozenset()
    gguf_architecture: str
    gguf_to_hf_config: Callable[[GGUFHeader], dict[str, Any]]
    gguf_tensor_names: Mapping[str, str]
    gguf_ignored_tensors: frozenset[str] = frozenset()
    gguf_interleaved: frozenset[str] = frozenset()
