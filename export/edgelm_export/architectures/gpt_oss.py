"""GPT-OSS: experts with a clamped gate, a window in every second layer, attention sinks and YaRN."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import WINDOW
from edgelm_export.checkpoints.tensor_map import TensorLayout

_YARN: Mapping[str, Any] = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_EXPERT, _ROUTER = "model.layers.{i}.mlp.experts", "model.layers.{i}.mlp.gate"
# One tensor a layer holds all gates and ups, [E, in, 2 * out], whose columns alternate between them.
_NAMES = {
    _ROUTER: "model.layers.{i}.mlp.router",
    f"{_EXPERT}.{{e}}.gate_proj.weight": f"{_EXPERT}.gate_up_proj",
    f"{_EXPERT}.{{e}}.up_proj.weight": f"{_EXPERT}.gate_up_proj",
    f"{_EXPERT}.{{e}}.down_proj.weight": f"{_EXPERT}.down_proj",
    f"{_EXPERT}.{{e}}.gate_proj.bias": f"{_EXPERT}.gate_up_proj_bias",
    f"{_EXPERT}.{{e}}.up_proj.bias": f"{_EXPERT}.gate_up_proj_bias",
    f"{_EXPERT}.{{e}}.down_proj.bias": f"{_EXPERT}.down_proj_bias",
}
_GGUF_NAMES = experts.GGUF_NAMES | {
    "model.layers.{i}.self_attn.sinks": "blk.{i}.attn_sinks.weight",
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    if not (values.get("rope_scaling") or values.get("rope_parameters")):
        values["rope_scaling"] = dict(_YARN)
    config = llama.to_model_config(values | {"mlp_bias": True})
    window = hf_values.optional_whole_number(values, "sliding_window")
    return dataclasses.replace(
        config,
        swiglu_alpha=hf_values.number(values, "swiglu_alpha", 1.702),
        swiglu_limit=hf_values.number(values, "swiglu_limit", 7.0),
        **hf_values.windows(values, window, hf_values.last_sees_all(config.num_hidden_layers, 2)),
        **experts.expert_fields(values, "num_local_experts"),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    keys = {**WINDOW, **experts.gguf_keys("num_local_experts", size="intermediate_size")}
    values = gguf_header.to_hf_config(header, keys)
    if (scaling := values["rope_scaling"]) and scaling["rope_type"] == "yarn":
        scaling["truncate"] = False
    return values


GPT_OSS = Architecture(
    model_type="gpt_oss",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "attention_bias": True,
    },
    read_config=_to_model_config,
    features={"attention_sinks": True, "router_bias": True},
    layout=TensorLayout(
        names=_NAMES,
        transposed=frozenset({f"{_EXPERT}.gate_up_proj", f"{_EXPERT}.down_proj"}),
        interleaved=frozenset({f"{_EXPERT}.gate_up_proj", f"{_EXPERT}.gate_up_proj_bias"}),
    ),
    mlx=TensorLayout(names={_ROUTER: _NAMES[_ROUTER], **experts.mlx_names(_EXPERT)}),
    gguf=GGUFFamily(
        architecture="gpt-oss",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=_GGUF_NAMES),
        has_experts=True,
    ),
)
