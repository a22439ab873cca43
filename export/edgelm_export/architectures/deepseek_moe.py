"""DeepSeek-MoE, the first, and Ling (lite, plus): a Llama with experts beside a shared one, scored by softmax.

Ling and Ring 2.0 (mini, flash) say that they are the same model_type: they norm queries and keys, turn a part of each
head, and score experts by sigmoids. Sarvam is such a one that turns whole heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.checkpoints.tensor_map import TensorLayout

_LING_DEFAULTS: Mapping[str, Any] = {
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "moe_intermediate_size": None,
    "first_k_dense_replace": 0,
    "norm_topk_prob": True,
}
_LING_FIXED: dict[str, Any] = {"norm_head": False, "use_bias": False, "use_qkv_bias": False}
# DeepSeek's names for what Ling calls otherwise.
_AS_DEEPSEEK = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}

_LAYER = "model.layers.{i}"
_FUSED = f"{_LAYER}.attention.query_key_value"
_LING_NAMES = {
    "model.embed_tokens": "model.word_embeddings",
    **{f"{_LAYER}.self_attn.{part}_proj": _FUSED for part in "qkv"},
    f"{_LAYER}.self_attn.o_proj": f"{_LAYER}.attention.dense",
    f"{_LAYER}.self_attn.q_norm": f"{_LAYER}.attention.query_layernorm",
    f"{_LAYER}.self_attn.k_norm": f"{_LAYER}.attention.key_layernorm",
    f"{_LAYER}.mlp.gate.e_score_correction_bias": f"{_LAYER}.mlp.gate.expert_bias",
}
# Behind the last layer of some are those that guess further tokens.
_LING_LAYOUT = TensorLayout(names=_LING_NAMES, has_more_layers=True)
_GGUF_KEYS = experts.gguf_keys("n_routed_experts") | {
    "expert_shared_count": ("n_shared_experts", 0),
    "leading_dense_block_count": ("first_k_dense_replace", 0),
    "expert_weights_norm": ("norm_topk_prob", False),
    "expert_weights_scale": None,
    "expert_gating_func": None,
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    config = llama.to_model_config({**values, "mlp_bias": False})
    size = hf_values.whole_number(values, "moe_intermediate_size", config.intermediate_size)
    return dataclasses.replace(
        config,
        layers_without_experts=experts.dense_layers(values, config.num_hidden_layers),
        moe_intermediate_size=size,
        shared_expert_intermediate_size=size * hf_values.whole_number(values, "n_shared_experts", 0) or None,
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **experts.expert_fields(values, "n_routed_experts"),
    )


def _to_ling_config(values: dict[str, Any]) -> ModelConfig:
    if values.get("score_function") == "sigmoid":
        return LING_2.to_model_config(values)
    return _to_model_config({**_LING_DEFAULTS, **values})


def _gguf_values(header: GGUFHeader) -> dict[str, Any]:
    experts.check_gguf_scoring(header, experts.GGUF_SOFTMAX)
    return gguf_header.to_hf_config(header, _GGUF_KEYS)


DEEPSEEK_MOE = Architecture(
    model_type="deepseek",
    defaults={
        "moe_intermediate_size": 1407,
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "norm_topk_prob": False,
        "bos_token_id": 100000,
        "eos_token_id": 100001,
    },
    fixed={"scoring_func": "softmax", "moe_layer_freq": 1},
    read_config=_to_model_config,
    mlx=TensorLayout(names=experts.MLX_NAMES),
    is_in_transformers=False,
    gguf=GGUFFamily(
        architecture="deepseek",
        to_hf_config=_gguf_values,
        layout=experts.GGUF_LAYOUT,
        has_experts=True,
    ),
)
LING = Architecture(
    model_type="bailing_moe",
    fixed=_LING_FIXED,
    renamed=_AS_DEEPSEEK,
    read_config=_to_ling_config,
    layout=_LING_LAYOUT,
    mlx=TensorLayout(
        names=_LING_NAMES
        | {f"{_LAYER}.mlp.gate": f"{_LAYER}.mlp.gate.gate_proj"}
        | experts.mlx_names(f"{_LAYER}.mlp.switch_mlp")
    ),
    is_in_transformers=False,
    gguf=GGUFFamily(
        architecture="bailingmoe",
        to_hf_config=_gguf_values,
        layout=experts.GGUF_LAYOUT,
        has_experts=True,
    ),
)
LING_2 = Architecture(
    model_type="bailing_moe_v2",
    defaults={
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "partial_rotary_factor": 0.5,
        "use_qk_norm": True,
        "first_k_dense_replace": 0,
        "n_shared_experts": 0,
        "norm_topk_prob": True,
    },
    fixed=_LING_FIXED | {"moe_router_enable_expert_bias": True, "score_function": "sigmoid"},
    renamed=_AS_DEEPSEEK,
    read_config=partial(sigmoid_experts.to_model_config, partial=1.0),
    layout=_LING_LAYOUT,
    is_in_transformers=False,
    gguf=GGUFFamily(
        architecture="bailingmoe2",
        to_hf_config=lambda header: sigmoid_experts.gguf_values(header, turns_a_part=True),
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS),
        has_experts=True,
    ),
)


# Sarvam (30B-A2.4B): a Ling 2.0 that turns whole heads, under DeepSeek-V3's names or Ling's.
SARVAM = Architecture(
    model_type="sarvam_moe",
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 8e6,
        "moe_intermediate_size": 1024,
        "num_experts_per_tok": 6,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
        "eos_token_id": 1,
    },
    renamed={**_AS_DEEPSEEK, "attention_bias": "use_qkv_bias"},
    read_config=sigmoid_experts.to_model_config,
    features={"attention_output_bias": False},
    layout=_LING_LAYOUT,
    gguf=None,
)
