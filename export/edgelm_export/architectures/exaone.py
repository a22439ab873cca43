"""EXAONE 3 and 4, and K-EXAONE.

EXAONE 3 is a Llama under other names. EXAONE 4 has norms behind each part and of each head; with windows, the layers
that see all do not turn their heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import experts, hf_values, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gemma import GGUF_NAMES
from edgelm_export.architectures.gguf_values import WINDOW, WINDOW_PATTERN, window_kinds
from edgelm_export.checkpoints.tensor_map import TensorLayout

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

_LAYER = "transformer.h.{i}"
_NAMES_3 = {
    "model.embed_tokens": "transformer.wte",
    "model.layers.{i}.input_layernorm": f"{_LAYER}.ln_1",
    **{f"model.layers.{{i}}.self_attn.{part}_proj": f"{_LAYER}.attn.attention.{part}_proj" for part in "qkv"},
    "model.layers.{i}.self_attn.o_proj": f"{_LAYER}.attn.attention.out_proj",
    "model.layers.{i}.post_attention_layernorm": f"{_LAYER}.ln_2",
    "model.layers.{i}.mlp.gate_proj": f"{_LAYER}.mlp.c_fc_0",
    "model.layers.{i}.mlp.up_proj": f"{_LAYER}.mlp.c_fc_1",
    "model.layers.{i}.mlp.down_proj": f"{_LAYER}.mlp.c_proj",
    "model.norm": "transformer.ln_f",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    window = hf_values.optional_whole_number(values, "sliding_window")
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    pattern = values.get("sliding_window_pattern") or _PATTERN
    if pattern == "LLLG":  # as the model's own config.json writes it
        pattern = _PATTERN
    step = hf_values.bounded({"sliding_window_pattern": pattern}, "sliding_window_pattern")
    windows = hf_values.windows(values, window, hf_values.last_sees_all(layers, step))
    kinds = list(windows.get("layer_types") or ["sliding_attention" if windows else "full_attention"] * layers)
    without_rope = () if window is None else hf_values.layers_of(kinds, "full_attention")
    return dataclasses.replace(llama.to_model_config(values), layers_without_rope=without_rope, **windows)


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = llama.gguf_values(header, {"attention.sliding_window": None, WINDOW_PATTERN: None})
    layers = values["num_hidden_layers"]
    has_windows = layers == _LAYERS_OF_32B
    return {
        **values,
        "sliding_window": _DEFAULTS["sliding_window"] if has_windows else None,
        "layer_types": hf_values.last_sees_all(min(layers, MAX_LAYERS), _PATTERN if has_windows else 1),
    }


EXAONE = Architecture(
    model_type="exaone",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "bos_token_id": 1,
        "eos_token_id": 361,
    },
    null_keys=frozenset(),
    # As the models' own code called them, before transformers knew the family.
    renamed={
        "num_hidden_layers": "num_layers",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    read_config=llama.to_model_config,
    layout=TensorLayout(names=_NAMES_3),
    gguf=GGUFFamily(
        architecture="exaone",
        to_hf_config=llama.gguf_values,
        layout=TensorLayout(
            names=llama.GGUF_NAMES,
            ignored=frozenset({"rope_freqs.weight"}),  # read by to_hf_config
        ),
    ),
)
EXAONE4 = Architecture(
    model_type="exaone4",
    defaults=_DEFAULTS,
    read_config=_to_model_config,
    features={
        "norm_placement": "post",
        "qk_norm": True,
        **hf_values.biases(False),
    },
    gguf=GGUFFamily(
        architecture="exaone4",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(
            names=GGUF_NAMES | llama.GGUF_QK_NORMS,
            ignored=frozenset({"rope_freqs.weight"}),  # read by to_hf_config
        ),
    ),
)


# K-EXAONE: windows and heads of EXAONE 4, norms before each part, and experts behind the first layers.
_MLP = "model.layers.{i}.mlp"
_NAMES = {f"{_MLP}.gate.e_score_correction_bias": f"{_MLP}.e_score_correction_bias"}


def _to_exaone_moe_config(values: dict[str, Any]) -> ModelConfig:
    config = EXAONE4.to_model_config(values)
    return dataclasses.replace(config, norm_placement="pre", **sigmoid_experts.fields(values, config.num_hidden_layers))


def _exaone_moe_gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = sigmoid_experts.gguf_values(header, {**WINDOW, WINDOW_PATTERN: None})
    has_pattern = isinstance(header.metadata.get(f"exaone-moe.{WINDOW_PATTERN}"), list)
    return values | {"layer_types": window_kinds(header) if has_pattern else None}


EXAONE_MOE = Architecture(
    model_type="exaone_moe",
    defaults={
        "bos_token_id": 1,
        "eos_token_id": 53,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 1024,
        "n_routed_experts": 64,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
    renamed={"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"},
    read_config=_to_exaone_moe_config,
    layout=TensorLayout(names=_NAMES),
    mlx=TensorLayout(names=experts.MLX_NAMES),
    gguf=GGUFFamily(
        architecture="exaone-moe",
        to_hf_config=_exaone_moe_gguf_to_hf_config,
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS),
        has_experts=True,
    ),
)
