"""LFM2: most layers have a short convolution in the place of attention, the others norm each head.

The feed-forwards of LFM2-8B-A1B (model_type lfm2_moe) are experts, behind the first layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import NO_KEYS, GGUFKeys
from edgelm_export.checkpoints.tensor_map import TensorLayout

_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 1e6,
}
_MOE_DEFAULTS: Mapping[str, Any] = {
    **_DEFAULTS,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "use_expert_bias": True,
}
_RENAMED: Mapping[str, str] = {"rms_norm_eps": "norm_eps", "tie_word_embeddings": "tie_embedding"}
_FEATURES: Mapping[str, Any] = {**hf_values.biases(False), "qk_norm": True}
_LARGEST_MULTIPLIER = 1000  # in use is 1
_NAMES = {
    "model.layers.{i}.input_layernorm": "model.layers.{i}.operator_norm",
    "model.layers.{i}.self_attn.o_proj": "model.layers.{i}.self_attn.out_proj",
    "model.layers.{i}.self_attn.q_norm": "model.layers.{i}.self_attn.q_layernorm",
    "model.layers.{i}.self_attn.k_norm": "model.layers.{i}.self_attn.k_layernorm",
    "model.layers.{i}.post_attention_layernorm": "model.layers.{i}.ffn_norm",
    "model.layers.{i}.mlp.gate_proj": "model.layers.{i}.feed_forward.w1",
    "model.layers.{i}.mlp.up_proj": "model.layers.{i}.feed_forward.w3",
    "model.layers.{i}.mlp.down_proj": "model.layers.{i}.feed_forward.w2",
    "model.norm": "model.embedding_norm",
}
_EXPERT = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_MOE_NAMES = _NAMES | {
    "model.layers.{i}.mlp.gate": "model.layers.{i}.feed_forward.gate",
    "model.layers.{i}.mlp.gate.e_score_correction_bias": "model.layers.{i}.feed_forward.expert_bias",
    **{
        f"model.layers.{{i}}.mlp.experts.{{e}}.{ours}": f"model.layers.{{i}}.feed_forward.experts.{{e}}.{theirs}"
        for ours, theirs in _EXPERT.items()
    },
}
_MLX_NAMES = (
    _MOE_NAMES
    | {f"model.layers.{{i}}.mlp.{part}": f"model.layers.{{i}}.feed_forward.{part}" for part in _EXPERT}
    | experts.mlx_names("model.layers.{i}.feed_forward.switch_mlp")
)
_GGUF_NAMES = (
    llama.GGUF_NAMES
    | llama.GGUF_QK_NORMS
    | {
        "model.layers.{i}.conv.in_proj": "blk.{i}.shortconv.in_proj",
        "model.layers.{i}.conv.conv": "blk.{i}.shortconv.conv",
        "model.layers.{i}.conv.out_proj": "blk.{i}.shortconv.out_proj",
        "model.norm": "token_embd_norm",  # it is the last norm all the same
    }
)


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    return _read({**values, "intermediate_size": _feed_forward_size(values)})


def _to_moe_config(values: dict[str, Any]) -> ModelConfig:
    dense = hf_values.whole_number(values, "num_dense_layers")
    config = _read(values)
    return dataclasses.replace(
        config,
        layers_without_experts=tuple(range(min(dense, config.num_hidden_layers))),
        moe_intermediate_size=hf_values.whole_number(values, "moe_intermediate_size"),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        routed_scaling_factor=hf_values.number(values, "routed_scaling_factor", 1.0),
        expert_choice_bias=hf_values.flag(values, "use_expert_bias"),
        **experts.expert_fields(values, "num_experts"),
    )


def _read(values: Mapping[str, Any]) -> ModelConfig:
    kinds = hf_values.layer_types(values) or _kinds_by_number(values)
    return dataclasses.replace(
        llama.to_model_config(values),
        layer_types=tuple(kinds),
        conv_L_cache=hf_values.whole_number(values, "conv_L_cache", 3),
        conv_bias=hf_values.flag(values, "conv_bias"),
    )


def _feed_forward_size(values: Mapping[str, Any]) -> int:
    """Return the size that the model has: config.json's is that of a feed-forward without a gate."""
    size = hf_values.bounded(values, "block_ff_dim" if "block_ff_dim" in values else "intermediate_size")
    if not hf_values.flag(values, "block_auto_adjust_ff_dim", True):
        return size
    multiplier = hf_values.number(values, "block_ffn_dim_multiplier", 1.0)
    if not 0 < multiplier < _LARGEST_MULTIPLIER:
        raise CheckpointError(
            f"config.json: block_ffn_dim_multiplier is {multiplier}; it must be above 0 and below "
            f"{_LARGEST_MULTIPLIER}."
        )
    step = hf_values.bounded({"block_multiple_of": 256} | dict(values), "block_multiple_of")
    return -(-int(multiplier * int(2 * size / 3)) // step) * step


def _kinds_by_number(values: Mapping[str, Any]) -> list[str]:
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    attending = values.get("full_attn_idxs")
    if attending is None:
        return ["full_attention"] * layers
    if not isinstance(attending, list):
        raise CheckpointError(f"config.json: full_attn_idxs is {attending!r:.80}; it must be a list of layers.")
    return ["full_attention" if layer in attending else "conv" for layer in range(layers)]


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    return _gguf_values(header) | {"block_auto_adjust_ff_dim": False}


def _moe_gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    experts.check_gguf_scoring(header)
    keys = {"leading_dense_block_count": ("num_dense_layers", 0), "expert_gating_func": None}
    return _gguf_values(header, experts.gguf_keys("num_experts") | keys)


def _gguf_values(header: GGUFHeader, keys: GGUFKeys = NO_KEYS) -> dict[str, Any]:
    header, listed = gguf_header.by_layer(header)
    values = gguf_header.to_hf_config(header, {"shortconv.l_cache": "conv_L_cache", **keys})
    return {
        **values,
        "conv_bias": any(name.endswith("shortconv.in_proj.bias") for name in header.shapes),
        "layer_types": ["full_attention" if number else "conv" for number in listed],
    }


LFM2 = Architecture(
    model_type="lfm2",
    defaults=_DEFAULTS,
    renamed=_RENAMED,
    read_config=_to_model_config,
    features=_FEATURES,
    layout=TensorLayout(names=_NAMES, ones_elsewhere=frozenset({"model.layers.{i}.conv.conv.weight"})),
    gguf=GGUFFamily(
        architecture="lfm2",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=_GGUF_NAMES, ones_elsewhere=frozenset({"blk.{i}.shortconv.conv.weight"})),
    ),
)
LFM2_MOE = Architecture(
    model_type="lfm2_moe",
    defaults=_MOE_DEFAULTS,
    renamed=_RENAMED,
    read_config=_to_moe_config,
    features={**_FEATURES, "scoring_func": "sigmoid"},
    layout=TensorLayout(names=_MOE_NAMES, ones_elsewhere=frozenset({"model.layers.{i}.conv.conv.weight"})),
    mlx=TensorLayout(names=_MLX_NAMES, ones_elsewhere=frozenset({"model.layers.{i}.conv.conv.weight"})),
    gguf=GGUFFamily(
        architecture="lfm2moe",
        to_hf_config=_moe_gguf_to_hf_config,
        layout=TensorLayout(
            names=experts.GGUF_NAMES | _GGUF_NAMES, ones_elsewhere=frozenset({"blk.{i}.shortconv.conv.weight"})
        ),
        has_experts=True,
    ),
)
