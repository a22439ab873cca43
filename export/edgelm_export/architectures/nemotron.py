"""Nemotron and Minitron, the dense models: layer norms of 1 + weight, and a squared relu without a gate."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.tensor_map import TensorLayout

_PART = 0.5  # of a head, that turns


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    return dataclasses.replace(
        llama.to_model_config({**values, "rms_norm_eps": values["norm_eps"]}, partial=_PART),
        norm="layer_offset",
        mlp_gated=False,
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, "nemotron", norm="layer", turns_a_part=True)
    return {
        **values,
        "norm_eps": values["rms_norm_eps"],
        "attention_bias": "blk.0.attn_output.bias" in header.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in header.shapes,
    }


NEMOTRON = Architecture(
    model_type="nemotron",
    defaults={
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "hidden_act": "relu2",
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    read_config=_to_model_config,
    gguf=GGUFFamily(
        architecture="nemotron",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=llama.GGUF_NAMES, norms_plus_one=True),
    ),
)
