"""Qwen1.5 and Qwen2 with experts, and one beside those that every token goes through, as far as a gate lets it."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.tensor_map import TensorLayout

GGUF_KEYS = experts.gguf_keys("num_experts") | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values)
    layers = range(config.num_hidden_layers)
    windowed = hf_values.flag(values, "use_sliding_window")
    last = hf_values.whole_number(values, "max_window_layers", 28)
    kinds = ["full_attention" if layer % 2 or layer >= last else "sliding_attention" for layer in layers]
    window = hf_values.whole_number(values, "sliding_window", 4096) if windowed else None
    return dataclasses.replace(
        config,
        attention_bias=hf_values.flag(values, "qkv_bias"),
        moe_intermediate_size=hf_values.whole_number(values, "moe_intermediate_size"),
        shared_expert_intermediate_size=hf_values.whole_number(values, "shared_expert_intermediate_size"),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **hf_values.windows(values, window, kinds),
        **experts.sparse_layers(values, config.num_hidden_layers),
        **experts.expert_fields(values, "num_experts"),
    )


QWEN2_MOE = Architecture(
    model_type="qwen2_moe",
    defaults={
        "num_key_value_heads": 16,
        "max_position_embeddings": 32768,
        "qkv_bias": True,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
    },
    read_config=_to_model_config,
    features={"attention_output_bias": False, "mlp_bias": False, "shared_expert_gate": True},
    layout=TensorLayout(names=experts.shared_expert_names("model.layers.{i}.mlp")),
    gguf=GGUFFamily(
        architecture="qwen2moe",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, GGUF_KEYS),
        layout=TensorLayout(names=experts.GGUF_NAMES, ones_elsewhere=frozenset({"blk.{i}.ffn_gate_inp_shexp.weight"})),
        has_experts=True,
    ),
)
