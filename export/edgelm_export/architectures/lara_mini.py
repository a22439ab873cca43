"""Lara 4 Mini, which translates: linear attention and windows in turn, heads that turn in windows alone, experts."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import experts, hf_values, llama, qwen3_5
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_KINDS = ("linear_attention", "sliding_attention", "linear_attention", "full_attention", "sliding_attention")

_ATTENTION = qwen3_5.LINEAR_ATTENTION
_FUSED = {f"{_ATTENTION}.in_proj_{part}": f"{_ATTENTION}.in_proj" for part in ("qkv", "z", "b", "a")}
_OWN = _FUSED | {f"{_ATTENTION}.norm": f"{_ATTENTION}.out_norm"}
_NAMES = experts.shared_expert_names("model.layers.{i}.mlp")


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    kinds = hf_values.layer_types(values) or [_KINDS[layer % len(_KINDS)] for layer in range(layers)]
    linear: dict[str, Any] = {
        key: hf_values.whole_number(values, key) for key in LARA_MINI.defaults if key.startswith("linear_")
    }
    size, shared = (hf_values.whole_number(values, f"{kind}_intermediate_size") for kind in ("moe", "shared_expert"))
    return dataclasses.replace(
        llama.to_model_config({**values, "intermediate_size": size}),
        layer_types=tuple(kinds),
        sliding_window=hf_values.whole_number(values, "sliding_window"),
        layers_without_rope=hf_values.layers_of(kinds, "full_attention"),
        moe_intermediate_size=size,
        shared_expert_intermediate_size=shared,
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **linear,
        **experts.expert_fields(values, "num_experts"),
    )


LARA_MINI = Architecture(
    model_type="lara_mini",
    defaults={
        "vocab_size": 151936,
        "hidden_size": 1024,
        "num_hidden_layers": 34,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "sliding_window": 512,
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "num_experts": 128,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True,
        "tie_word_embeddings": True,
        "eos_token_id": 151643,
    },
    fixed={"hidden_act": "silu"},  # the convolution and the gates of linear attention have it too
    read_config=_to_model_config,
    features={"mlp_bias": False, "qk_norm": True},
    layout=TensorLayout(names=_NAMES | _OWN),
    stacked=TensorLayout(names=_NAMES | qwen3_5.STACKS | _OWN),
    gguf=None,
)
