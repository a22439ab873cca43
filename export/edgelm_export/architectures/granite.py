"""Granite 3: a Llama with a multiplier at each place where signals meet.

Some have experts (model_type granitemoe), and a few a shared one beside those (granitemoeshared).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import NO_KEYS, GGUFKeys, float32_number
from edgelm_export.checkpoints.tensor_map import TensorLayout

# llama.cpp's names for them.
_MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
GGUF_MOE_KEYS = experts.gguf_keys("num_local_experts", size=None) | {
    "expert_shared_feed_forward_length": ("shared_intermediate_size", 0)
}
_MOE = "model.layers.{i}.block_sparse_moe"
_SHARED = "model.layers.{i}.shared_mlp"
_OTHER_NAMES = {
    "model.layers.{i}.mlp.gate": f"{_MOE}.router.layer",
    "model.layers.{i}.mlp.shared_experts.gate_proj": f"{_SHARED}.input_linear",
    "model.layers.{i}.mlp.shared_experts.up_proj": f"{_SHARED}.input_linear",
    "model.layers.{i}.mlp.shared_experts.down_proj": f"{_SHARED}.output_linear",
}
NAMES = _OTHER_NAMES | {
    "model.layers.{i}.mlp.experts.{e}.gate_proj": f"{_MOE}.input_linear",
    "model.layers.{i}.mlp.experts.{e}.up_proj": f"{_MOE}.input_linear",
    "model.layers.{i}.mlp.experts.{e}.down_proj": f"{_MOE}.output_linear",
}
MLX_NAMES = _OTHER_NAMES | experts.mlx_names(f"{_MOE}.switch_mlp")


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values)
    multipliers: dict[str, Any] = {key: hf_values.number(values, key, 1.0) for key in _MULTIPLIERS}
    return dataclasses.replace(config, **multipliers)


def expert_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ModelConfig for experts, and for the shared one."""
    values = {"num_local_experts": 8, "num_experts_per_tok": 2, **values}
    shared = hf_values.whole_number(values, "shared_intermediate_size", 0)
    return {
        "moe_intermediate_size": hf_values.whole_number(values, "intermediate_size"),
        "shared_expert_intermediate_size": shared or None,
        "mlp_bias": False,
        **experts.expert_fields(values, "num_local_experts"),
    }


def _to_moe_config(values: dict[str, Any]) -> ModelConfig:
    fields = expert_fields({**values, "shared_intermediate_size": 0})
    return dataclasses.replace(_to_model_config(values), **fields)


def _to_moe_shared_config(values: dict[str, Any]) -> ModelConfig:
    return dataclasses.replace(_to_model_config(values), **expert_fields(values))


def _moe_gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_values(header, GGUF_MOE_KEYS)
    return {"model_type": "granitemoeshared" if values["shared_intermediate_size"] else "granitemoe", **values}


def gguf_values(header: GGUFHeader, keys: GGUFKeys = NO_KEYS) -> dict[str, Any]:
    """Make config.json's values of a header, with the multipliers."""
    values = gguf_header.to_hf_config(header, {**dict.fromkeys(_MULTIPLIERS.values()), **keys})
    for key, name in _MULTIPLIERS.items():
        default = max(values["head_dim"], 1) ** -0.5 if key == "attention_multiplier" else 1.0
        values[key] = float32_number(header.metadata, f"{header.architecture}.{name}", default)
    return values


GRANITE = Architecture(
    model_type="granite",
    defaults=llama.LLAMA.defaults,
    read_config=_to_model_config,
    gguf=GGUFFamily(
        architecture="granite",
        to_hf_config=gguf_values,
        layout=llama.GGUF_LAYOUT,
    ),
)
GRANITE_MOE = Architecture(
    model_type="granitemoe",
    defaults=llama.LLAMA.defaults,
    read_config=_to_moe_config,
    layout=TensorLayout(names=NAMES),
    mlx=TensorLayout(names=MLX_NAMES),
    gguf=GGUFFamily(
        architecture="granitemoe",
        to_hf_config=_moe_gguf_to_hf_config,
        layout=experts.GGUF_LAYOUT,
        has_experts=True,
    ),
)
GRANITE_MOE_SHARED = dataclasses.replace(GRANITE_MOE, model_type="granitemoeshared", read_config=_to_moe_shared_config)
