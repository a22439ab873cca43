"""Phi-3, Phi-3.5 and Phi-4-mini: a Llama with fused projections, LongRoPE, and heads that turn in part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import float32_number, whole_number
from edgelm_export.checkpoints.tensor_map import TensorLayout

# Older names of LongRoPE.
_LONGROPE_NAMES = ("su", "yarn")

_NAMES = {
    **{f"model.layers.{{i}}.self_attn.{part}_proj": "model.layers.{i}.self_attn.qkv_proj" for part in "qkv"},
    "model.layers.{i}.mlp.gate_proj": "model.layers.{i}.mlp.gate_up_proj",
    "model.layers.{i}.mlp.up_proj": "model.layers.{i}.mlp.gate_up_proj",
}
GGUF_FUSED = {f"model.layers.{{i}}.self_attn.{part}_proj": "blk.{i}.attn_qkv" for part in "qkv"}
_GGUF_KEYS = {"attention.sliding_window": None}


def with_longrope(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a rope with LongRoPE called by that name."""
    is_called_otherwise = settings.get("rope_type", settings.get("type")) in _LONGROPE_NAMES
    return {**settings, "rope_type": "longrope"} if is_called_otherwise else settings


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(values.get(key), Mapping):
            values[key] = with_longrope(values[key])
    config = llama.to_model_config(values, partial=1.0)
    return dataclasses.replace(config, sliding_window=hf_values.optional_whole_number(values, "sliding_window"))


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, _GGUF_KEYS, turns_a_part=True)
    context = values["max_position_embeddings"]
    original = whole_number(header.metadata, "phi3.rope.scaling.original_context_length", context)
    if header.rope_factors and "phi3.rope.scaling.attn_factor" in header.metadata:
        factor = float32_number(header.metadata, "phi3.rope.scaling.attn_factor")
        values["rope_scaling"]["attention_factor"] = factor
    # Its converter writes a window of zero where there is none.
    window = whole_number(header.metadata, "phi3.attention.sliding_window", 0)
    return {
        **values,
        "original_max_position_embeddings": original,
        "sliding_window": window or None,
    }


PHI3 = Architecture(
    model_type="phi3",
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
    read_config=_to_model_config,
    features=hf_values.biases(False),
    layout=TensorLayout(names=_NAMES),
    gguf=GGUFFamily(
        architecture="phi3",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(
            names=llama.GGUF_NAMES | GGUF_FUSED | {"model.layers.{i}.mlp.gate_proj": "blk.{i}.ffn_up"},
            ignored=gguf_header.LONGROPE_TENSORS,  # read by to_hf_config
        ),
    ),
)
