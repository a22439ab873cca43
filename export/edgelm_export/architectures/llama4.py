"""Llama 4 without experts (MobileLLM-R1 and R1.5): norms of queries and keys without weights; neighbours turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.checkpoints.tensor_map import TensorLayout

_GGUF_KEYS = dict.fromkeys(("attention.sliding_window", "expert_feed_forward_length", "expert_used_count"))
_NAMES = {
    f"model.layers.{{i}}.mlp.{part}_proj": f"model.layers.{{i}}.feed_forward.{part}_proj"
    for part in ("gate", "up", "down")
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config({**values, "intermediate_size": values["intermediate_size_mlp"]})
    layers, with_experts = config.num_hidden_layers, values.get("moe_layers")
    step = hf_values.whole_number(values, "interleave_moe_layer_step")
    if with_experts or (with_experts is None and 1 <= step <= layers):
        raise CheckpointError(
            f"config.json: moe_layers is {with_experts!r:.60} and interleave_moe_layer_step {step}; of Llama 4, models "
            "without experts are supported, such as MobileLLM-R1."
        )
    _check_chunks(values, config.max_position_embeddings)
    listed = values.get("no_rope_layers") or None
    without_rope = hf_values.layers_without_rope({**values, "no_rope_layers": listed}, layers)
    is_normed, is_tuned = (hf_values.flag(values, key) for key in ("use_qk_norm", "attn_temperature_tuning"))
    if without_rope and (is_normed or is_tuned):
        raise CheckpointError(
            f"config.json: layers {', '.join(map(str, without_rope))} turn no heads (no_rope_layers), with use_qk_norm "
            f"{is_normed} and attn_temperature_tuning {is_tuned}; beside such layers both must be false."
        )
    if is_normed:
        hf_values.check_turns_alone(config.rope_scaling)
    return dataclasses.replace(
        config,
        layers_without_rope=without_rope,
        # It norms after the rotation, which changes no length: without weights, that is to norm before it.
        qk_norm=is_normed,
        qk_norm_weights=not is_normed,
    )


def _check_chunks(values: Mapping[str, Any], context_length: int) -> None:
    """Refuse attention within chunks that are shorter than the context."""
    chunk = hf_values.optional_whole_number(values, "attention_chunk_size")
    usual = "full_attention" if chunk is None else "chunked_attention"
    kinds = set(hf_values.layer_types(values) or [usual])
    unknown = kinds - {"full_attention", "chunked_attention"}
    if unknown:
        raise CheckpointError(
            f"config.json: layer_types has {min(unknown)!r}; known are full_attention and chunked_attention."
        )
    if "chunked_attention" in kinds and chunk is not None and chunk < context_length:
        raise CheckpointError(
            f"config.json: attention_chunk_size is {chunk}, and max_position_embeddings {context_length}; attention "
            "within shorter chunks than the context is not supported. Set max_position_embeddings to the chunk's size."
        )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = llama.gguf_values(header, _GGUF_KEYS)
    window = header.metadata.get("llama4.attention.sliding_window")
    if window != 0:  # else llama.cpp takes the chunks and the layers without rope of the published ones with experts
        raise CheckpointError(
            f"GGUF metadata: llama4.attention.sliding_window is {window!r:.60}; of Llama 4, models with attention "
            "to all tokens are supported (0), such as MobileLLM-R1."
        )
    return values | {
        "intermediate_size_mlp": values["intermediate_size"],
        "moe_layers": [],
        "no_rope_layer_interval": values["num_hidden_layers"] + 1,
        "attention_chunk_size": None,
        "attn_temperature_tuning": False,
    }


LLAMA4 = Architecture(
    model_type="llama4_text",
    defaults={
        "intermediate_size_mlp": 16384,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "attn_temperature_tuning": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read_config=_to_model_config,
    layout=TensorLayout(names=_NAMES, row_orders=llama.GGUF_ROW_ORDERS),
    gguf=GGUFFamily(
        architecture="llama4",
        to_hf_config=_gguf_to_hf_config,
        layout=llama.GGUF_LAYOUT,
    ),
)
