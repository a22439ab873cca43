"""Apertus: norms of each head, and an activation with two learned factors in each layer, without a gate.

Apertus 1.5 has embeddings of tokens that its head does not know.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import whole_number
from edgelm_export.checkpoints.tensor_map import TensorLayout

_LLAMA3: Mapping[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}  # fmt: skip
_DEFAULTS: Mapping[str, Any] = {
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "rope_theta": 12e6,
    "hidden_act": "xielu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ALPHAS = ("model.layers.{i}.mlp.act_fn.alpha_p", "model.layers.{i}.mlp.act_fn.alpha_n")
_CONSTANTS = frozenset({"model.layers.{i}.mlp.act_fn.beta", "model.layers.{i}.mlp.act_fn.eps"})
_NAMES = {
    "model.layers.{i}.input_layernorm": "model.layers.{i}.attention_layernorm",
    "model.layers.{i}.post_attention_layernorm": "model.layers.{i}.feedforward_layernorm",
}
_GGUF_ALPHAS = {name: f"blk.{{i}}.xielu.{name.rpartition('.')[2]}" for name in _ALPHAS}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    if not (values.get("rope_scaling") or values.get("rope_parameters")):
        values["rope_parameters"] = _LLAMA3
    return llama.to_model_config(values)


def _to_model_config_1p5(values: dict[str, Any]) -> ModelConfig:
    """Read a vocabulary that ends with tokens of images and sound, of which the head may know nothing."""
    known = hf_values.optional_whole_number(values, "output_vocab_size")
    return _to_model_config({**values, "vocab_size": known or values["vocab_size"]})


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = llama.gguf_values(header)
    default = {"rope_type": "default", "rope_theta": values["rope_theta"]}
    return values | {"rope_scaling": values["rope_scaling"] or default}


def _gguf_alphas(header: GGUFHeader) -> dict[str, NDArray[np.float32]]:
    """Make tensors of the factors of all layers, which are two lists in the metadata."""
    layers = whole_number(header.metadata, "apertus.block_count")
    tensors: dict[str, NDArray[np.float32]] = {}
    for name in _GGUF_ALPHAS.values():
        key = name.removeprefix("blk.{i}.")
        factors = header.metadata.get(key)
        if not isinstance(factors, array) or len(factors) != layers or layers > MAX_LAYERS:
            raise CheckpointError(f"GGUF metadata: {key} is {factors!r:.80}; it must have a number for each layer.")
        with np.errstate(over="ignore"):  # what is not finite is refused as any weight
            values = np.asarray(factors, np.float32)
        tensors |= {name.replace("{i}", str(i)): values[i : i + 1] for i in range(len(values))}
    return tensors


APERTUS = Architecture(
    model_type="apertus",
    defaults=_DEFAULTS,
    read_config=_to_model_config,
    features={"qk_norm": True, "mlp_gated": False, "mlp_bias": False},
    layout=TensorLayout(names=_NAMES, ignored=_CONSTANTS, ones_elsewhere=frozenset(_ALPHAS)),
    gguf=GGUFFamily(
        architecture="apertus",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(
            names=llama.GGUF_NAMES | llama.GGUF_QK_NORMS | _GGUF_ALPHAS,
            ignored=frozenset({"rope_freqs.weight"}),  # read by to_hf_config
        ),
        computed=_gguf_alphas,
    ),
)
APERTUS_1P5 = dataclasses.replace(
    APERTUS,
    model_type="apertus1p5_text",
    defaults={**_DEFAULTS, "vocab_size": 266752},
    read_config=_to_model_config_1p5,
    layout=dataclasses.replace(APERTUS.layout, rows_behind=frozenset({"model.embed_tokens"})),
    gguf=None,
)
