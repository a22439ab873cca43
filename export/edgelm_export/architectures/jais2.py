"""Jais 2: layer norms, biases everywhere, and a squared relu without a gate."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.tensor_map import TensorLayout


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    return dataclasses.replace(
        llama.to_model_config({**values, "rms_norm_eps": values["layer_norm_eps"]}),
        norm="layer",
        mlp_gated=False,
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, "jais2", norm="layer")
    return values | {"layer_norm_eps": values["rms_norm_eps"]}


JAIS2 = Architecture(
    model_type="jais2",
    defaults={
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "attention_bias": True,
        "mlp_bias": True,
        "bos_token_id": 0,
        "eos_token_id": 150024,
    },
    read_config=_to_model_config,
    gguf=GGUFFamily(architecture="jais2", to_hf_config=_gguf_to_hf_config, layout=TensorLayout(names=llama.GGUF_NAMES)),
)
