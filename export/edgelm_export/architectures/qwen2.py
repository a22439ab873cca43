"""Qwen2 and Qwen2.5, a Llama with biases on queries, keys and values alone; Qwen3; those with experts; MiMo."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.checkpoints.tensor_map import TensorLayout


def _window(values: Mapping[str, Any]) -> int | None:
    """Read the window, where it is switched on."""
    is_used = hf_values.flag(values, "use_sliding_window")
    return hf_values.optional_whole_number(values, "sliding_window") if is_used else None


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values)
    first = hf_values.whole_number(values, "max_window_layers", 28)
    layers = range(config.num_hidden_layers)
    kinds = ["full_attention" if layer < first else "sliding_attention" for layer in layers]
    return dataclasses.replace(config, **hf_values.windows(values, _window(values), kinds))


_DEFAULTS: Mapping[str, Any] = {"max_position_embeddings": 32768, "sliding_window": 4096}

QWEN2 = Architecture(
    model_type="qwen2",
    defaults={**_DEFAULTS, "num_key_value_heads": 32},
    read_config=_to_model_config,
    features={"attention_bias": True, "attention_output_bias": False, "mlp_bias": False},
    gguf=GGUFFamily(
        architecture="qwen2",
        layout=TensorLayout(names=llama.GGUF_NAMES),
        also_called=("qwen2vl",),  # and Qwen2.5-VL
    ),
)


# Qwen3, the dense models: a Llama that norms each query and key head.
QWEN3 = Architecture(
    model_type="qwen3",
    defaults={**_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128},
    read_config=_to_model_config,
    features={"mlp_bias": False, "qk_norm": True},
    gguf=GGUFFamily(
        architecture="qwen3",
        layout=TensorLayout(names=llama.GGUF_NAMES | llama.GGUF_QK_NORMS),
        also_called=("qwen3vl",),
    ),
)


# Qwen1.5 and Qwen2 with experts, and one beside those that every token goes through, as far as a gate lets it.
MOE_GGUF_KEYS = experts.gguf_keys("num_experts") | {
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size"
}


def _to_qwen2_moe_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values)
    layers = range(config.num_hidden_layers)
    last = hf_values.whole_number(values, "max_window_layers", 28)
    kinds = ["full_attention" if layer % 2 or layer >= last else "sliding_attention" for layer in layers]
    return dataclasses.replace(
        config,
        attention_bias=hf_values.flag(values, "qkv_bias"),
        moe_intermediate_size=hf_values.whole_number(values, "moe_intermediate_size"),
        shared_expert_intermediate_size=hf_values.whole_number(values, "shared_expert_intermediate_size"),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **hf_values.windows(values, _window(values), kinds),
        **experts.sparse_layers(values, config.num_hidden_layers),
        **experts.expert_fields(values, "num_experts"),
    )


QWEN2_MOE = Architecture(
    model_type="qwen2_moe",
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 16,
        "qkv_bias": True,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
    },
    read_config=_to_qwen2_moe_config,
    features={"attention_output_bias": False, "mlp_bias": False, "shared_expert_gate": True},
    layout=TensorLayout(names=experts.shared_expert_names("model.layers.{i}.mlp")),
    gguf=GGUFFamily(
        architecture="qwen2moe",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, MOE_GGUF_KEYS),
        layout=TensorLayout(names=experts.GGUF_NAMES, ones_elsewhere=frozenset({"blk.{i}.ffn_gate_inp_shexp.weight"})),
        has_experts=True,
    ),
)


# Qwen3 with experts: in every layer, or in every n-th.
_EXPERTS = "model.layers.{i}.mlp.experts"
# Those of Qwen3-VL are stacks of [in, out], with gates and ups in one.
_STACKS = (f"{_EXPERTS}.gate_up_proj", f"{_EXPERTS}.down_proj")
_STACKED_NAMES = {
    f"{_EXPERTS}.{{e}}.gate_proj.weight": _STACKS[0],
    f"{_EXPERTS}.{{e}}.up_proj.weight": _STACKS[0],
    f"{_EXPERTS}.{{e}}.down_proj.weight": _STACKS[1],
}


def _to_qwen3_moe_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values | {"mlp_bias": False})
    return dataclasses.replace(
        config,
        sliding_window=_window(values),
        moe_intermediate_size=hf_values.whole_number(values, "moe_intermediate_size"),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **experts.sparse_layers(values, config.num_hidden_layers),
        **experts.expert_fields(values, "num_experts"),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, experts.gguf_keys("num_experts"))
    return values | {"norm_topk_prob": True}  # llama.cpp leaves it to its reader


QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    renamed={"num_experts": "num_local_experts"},  # as newer versions of transformers write it
    read_config=_to_qwen3_moe_config,
    features={"qk_norm": True},
    mlx=TensorLayout(names=experts.MLX_NAMES),
    stacked=TensorLayout(names=_STACKED_NAMES, transposed=frozenset(_STACKS)),
    gguf=GGUFFamily(
        architecture="qwen3moe",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS),
        has_experts=True,
        also_called=("qwen3vlmoe",),
    ),
)


# MiMo-7B: a Qwen2 beside which layers guess one more token ahead.
_BLOCK = "model.mtp_layers.{i}"
_NORMS = ("input_layernorm", "post_attention_layernorm", "token_layernorm", "hidden_layernorm", "final_layernorm")
_MATRICES = ("input_proj", "self_attn.o_proj", *(f"mlp.{part}_proj" for part in ("gate", "up", "down")))
_GUESSING = frozenset(
    {
        *(f"{_BLOCK}.{name}.weight" for name in (*_NORMS, *_MATRICES)),
        *(f"{_BLOCK}.self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
    }
)

MIMO = dataclasses.replace(
    QWEN2,
    model_type="mimo",
    layout=TensorLayout(ignored=_GUESSING),
    is_in_transformers=False,
    gguf=None,  # llama.cpp does not know it
)
