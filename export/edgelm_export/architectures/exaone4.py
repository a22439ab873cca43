"""EXAONE 4: norms behind each part and of each head; with windows, the layers that see all do not turn their heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gemma2 import GGUF_NAMES
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key.
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_PATTERN = 4  # of these, the last layer sees all
_LAYERS_OF_32B = 64  # the one model with windows; llama.cpp too knows it by its number of layers


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **values}
    window = hf_values.optional_whole_number(values, "sliding_window")
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    pattern = values.get("sliding_window_pattern") or _PATTERN
    if pattern == "LLLG":  # as the model's own config.json writes it
        pattern = _PATTERN
    step = hf_values.bounded({"sliding_window_pattern": pattern}, "sliding_window_pattern")
    windows = hf_values.windows(values, window, hf_values.last_sees_all(layers, step))
    kinds = list(windows.get("layer_types") or ["sliding_attention" if windows else "full_attention"] * layers)
    sees_all = tuple(layer for layer, kind in enumerate(kinds) if kind == "full_attention")
    return dataclasses.replace(
        llama.to_model_config(values),
        model_type="exaone4",
        norm_placement="post",
        qk_norm=True,
        mlp_bias=False,
        attention_bias=False,
        attention_output_bias=False,
        layers_without_rope=() if window is None else sees_all,
        **windows,
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    keys = frozenset({"attention.sliding_window", "attention.sliding_window_pattern"})
    values = gguf_header.to_hf_config(header, "exaone4", keys=keys)
    factors = header.rope_factors.get("rope_freqs.weight")
    if factors is not None:
        values["rope_scaling"] = llama.llama3_scaling(factors, values["rope_theta"], values["head_dim"])
    layers = values["num_hidden_layers"]
    has_windows = layers == _LAYERS_OF_32B
    return {
        "architectures": ["Exaone4ForCausalLM"],
        "model_type": "exaone4",
        **values,
        "sliding_window": _DEFAULTS["sliding_window"] if has_windows else None,
        "layer_types": hf_values.last_sees_all(layers, _PATTERN if has_windows else 1),
    }


EXAONE4 = Architecture(
    model_type="exaone4",
    to_model_config=_to_model_config,
    gguf=GGUFFamily(
        architecture="exaone4",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(
            names=GGUF_NAMES | llama.GGUF_QK_NORMS,
            ignored=frozenset({"rope_freqs.weight"}),  # read by to_hf_config
        ),
    ),
)
