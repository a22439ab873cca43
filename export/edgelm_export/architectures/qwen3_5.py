"""Qwen3.5: three of four layers have linear attention, the others norm each head and gate what they gather.

Some have experts (model_type qwen3_5_moe_text), and one beside those that every token goes through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama, qwen2
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import NO_KEYS, GGUFKeys
from edgelm_export.checkpoints.tensor_map import TensorLayout
from edgelm_export.checkpoints.text_part import plain_rope

_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
_MOE_DEFAULTS: Mapping[str, Any] = {
    **_DEFAULTS,
    "num_key_value_heads": 2,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
_FEATURES: Mapping[str, Any] = {
    "norm": "rms_offset", "mlp_bias": False, "qk_norm": True, "attention_output_gate": True,
}  # fmt: skip
_FIXED: Mapping[str, Any] = {"hidden_act": "silu"}  # the convolution of linear attention has it too
_PARTIAL = 0.25
_LINEAR = tuple(key for key in _DEFAULTS if key.startswith("linear_"))

ATTENTION = "model.layers.{i}.self_attn"
LINEAR_ATTENTION = "model.layers.{i}.linear_attn"
_NAMES = {f"{ATTENTION}.gate_proj": f"{ATTENTION}.q_proj"}
_MLP = "model.layers.{i}.mlp"
MOE_NAMES = _NAMES | experts.shared_expert_names(_MLP)
STACKS = {
    f"{_MLP}.experts.{{e}}.{part}_proj.weight": f"{_MLP}.experts.{stack}"
    for part, stack in (("gate", "gate_up_proj"), ("up", "gate_up_proj"), ("down", "down_proj"))
}
_GGUF_LINEAR = {
    "in_proj_qkv": "attn_qkv", "in_proj_z": "attn_gate", "in_proj_b": "ssm_beta", "in_proj_a": "ssm_alpha",
    "conv1d": "ssm_conv1d", "norm": "ssm_norm", "out_proj": "ssm_out", "A_log": "ssm_a", "dt_bias": "ssm_dt.bias",
}  # fmt: skip
GGUF_NAMES = {
    **experts.GGUF_NAMES,
    **llama.GGUF_QK_NORMS,
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
    f"{ATTENTION}.gate_proj": "blk.{i}.attn_q",
    **{f"{LINEAR_ATTENTION}.{part}": f"blk.{{i}}.{name}" for part, name in _GGUF_LINEAR.items()},
}
_BY_VALUE_HEAD = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "conv1d", "A_log", "dt_bias")
# The metadata of the linear layers, and what each says.
_GGUF_KEYS: GGUFKeys = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.inner_size": None,
    "full_attention_interval": ("full_attention_interval", 4),
    "attention.recurrent_layers": None,
    gguf_header.SECTIONS: None,
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    settings = values.get("rope_parameters")
    if isinstance(settings, Mapping):  # also of a folder without the part that reads images
        values["rope_parameters"] = plain_rope(settings)
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    every = hf_values.bounded(values, "full_attention_interval")
    by_number = hf_values.last_sees_all(layers, every, "linear_attention")
    linear: dict[str, Any] = {key: hf_values.whole_number(values, key) for key in _LINEAR}
    return dataclasses.replace(
        llama.to_model_config(values, partial=_PARTIAL),
        layer_types=tuple(hf_values.layer_types(values) or by_number),
        **linear,
    )


def _to_moe_config(values: dict[str, Any]) -> ModelConfig:
    size, shared = (hf_values.whole_number(values, f"{kind}_intermediate_size") for kind in ("moe", "shared_expert"))
    return dataclasses.replace(
        _to_model_config({**values, "intermediate_size": size}),
        moe_intermediate_size=size,
        shared_expert_intermediate_size=shared,
        **experts.expert_fields(values, "num_experts"),
    )


def _gguf_to_hf_config(header: GGUFHeader, keys: GGUFKeys = NO_KEYS) -> dict[str, Any]:
    metadata, name = header.metadata, header.architecture
    values = gguf_header.to_hf_config(header, {**_GGUF_KEYS, **keys}, turns_a_part=True)
    listed = metadata.get(f"{name}.attention.recurrent_layers")
    kinds = None
    if isinstance(listed, list):
        kinds = ["linear_attention" if is_recurrent else "full_attention" for is_recurrent in listed]
    return {
        **values,
        "linear_value_head_dim": values["linear_key_head_dim"],
        "layer_types": kinds,
        "attention_bias": any(name.endswith("attn_k.bias") for name in header.shapes),
    }


def moe_gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    """Make config.json's values of a header."""
    return _gguf_to_hf_config(header, qwen2.MOE_GGUF_KEYS)


def as_in_mlx(layout: TensorLayout) -> TensorLayout:
    """Return a layout as mlx-lm writes it: norms as they are multiplied by, convolutions as [C, K, 1]."""
    ones_elsewhere = frozenset({f"{LINEAR_ATTENTION}.conv1d.weight"})
    return dataclasses.replace(layout, norms_plus_one=True, ones_elsewhere=ones_elsewhere)


_LAYOUT = TensorLayout(names=_NAMES, by_head=frozenset({f"{ATTENTION}.q_proj"}))
GGUF_LAYOUT = TensorLayout(
    names=GGUF_NAMES,
    by_head=frozenset({"blk.{i}.attn_q"}),
    # llama.cpp repeats its key heads, all of them, for the value heads.
    row_orders={f"{LINEAR_ATTENTION}.{part}": "neighbours" for part in _BY_VALUE_HEAD},
    column_orders={f"{LINEAR_ATTENTION}.out_proj": "neighbours"},
    norms_plus_one=True,
    negative_exponentials=frozenset({"blk.{i}.ssm_a"}),
    ones_elsewhere=frozenset({"blk.{i}.ssm_conv1d.weight", "blk.{i}.ffn_gate_inp_shexp.weight"}),
)

QWEN3_5 = Architecture(
    model_type="qwen3_5_text",
    defaults=_DEFAULTS,
    fixed=_FIXED,
    read_config=_to_model_config,
    features=_FEATURES,
    layout=_LAYOUT,
    mlx=as_in_mlx(_LAYOUT),
    gguf=GGUFFamily(
        architecture="qwen35",
        to_hf_config=_gguf_to_hf_config,
        layout=GGUF_LAYOUT,
    ),
)
QWEN3_5_MOE = Architecture(
    model_type="qwen3_5_moe_text",
    defaults=_MOE_DEFAULTS,
    fixed=_FIXED,
    read_config=_to_moe_config,
    features={**_FEATURES, "shared_expert_gate": True},
    layout=dataclasses.replace(_LAYOUT, names=MOE_NAMES),
    mlx=as_in_mlx(dataclasses.replace(_LAYOUT, names=MOE_NAMES | experts.MLX_NAMES)),
    stacked=dataclasses.replace(_LAYOUT, names=MOE_NAMES | STACKS),
    gguf=GGUFFamily(architecture="qwen35moe", to_hf_config=moe_gguf_to_hf_config, layout=GGUF_LAYOUT, has_experts=True),
)
