"""Flint: experts weighted by sigmoids beside a shared one, attention sinks, and heads that turn in windows alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import experts, hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_NAMES = {
    **experts.shared_expert_names("model.layers.{i}.mlp"),
    "model.layers.{i}.self_attn.sinks": "model.layers.{i}.self_attn.softmax_offset",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    sees_all = [layer < 2 or layer % 4 == 1 or layer == layers - 1 for layer in range(layers)]
    usual = ["full_attention" if every else "sliding_attention" for every in sees_all]
    kinds = hf_values.layer_types(values) or usual
    return dataclasses.replace(
        llama.to_model_config(values),
        layers_without_rope=hf_values.layers_of(kinds, "full_attention"),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        moe_intermediate_size=hf_values.whole_number(values, "moe_intermediate_size"),
        shared_expert_intermediate_size=hf_values.whole_number(values, "shared_expert_intermediate_size"),
        **hf_values.windows(values, hf_values.whole_number(values, "sliding_window"), kinds),
        **experts.expert_fields(values, "num_experts"),
        **experts.sparse_layers(values, layers),
    )


FLINT = Architecture(
    model_type="flint",
    defaults={
        "vocab_size": 150144,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 49,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "sliding_window": 513,
        "num_experts": 256,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 1024,
        "norm_topk_prob": True,
        "mlp_only_layers": [0, 1],
    },
    null_keys=frozenset(),
    read_config=_to_model_config,
    features={"mlp_bias": False, "qk_norm": True, "attention_sinks": True, "scoring_func": "sigmoid"},
    layout=TensorLayout(names=_NAMES),
    gguf=None,
)
