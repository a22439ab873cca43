"""MiniCPM 1, 2 and 4: a Llama with the multipliers of a model that was tuned at a smaller size (μP)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import float32_number

# Of files that are older than their keys, as llama.cpp takes them.
_GGUF_DEFAULTS = {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256.0}
_GGUF_KEYS = dict.fromkeys(("embedding_scale", "residual_scale", "logit_scale"))


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    if hf_values.whole_number(values, "num_experts", 0):
        raise CheckpointError(
            f"config.json: num_experts is {values['num_experts']!r:.60}; supported is 0: MiniCPM-MoE is not."
        )
    if values.get("sparse_config"):
        raise CheckpointError(
            "config.json: sparse_config is set; attention that leaves tokens out (InfLLM v2) is not supported. Take it "
            "out of config.json, and the model looks at all tokens, as llama.cpp computes it."
        )
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    config = llama.to_model_config(values)
    base = hf_values.number(values, "dim_model_base", 1.0)
    if not base > 0:
        raise CheckpointError(f"config.json: dim_model_base is {base}; it must be above 0.")
    return dataclasses.replace(
        config,
        mlp_bias=False,
        embedding_multiplier=hf_values.number(values, "scale_emb", 1.0),
        residual_multiplier=hf_values.number(values, "scale_depth", 1.0) / layers**0.5,
        logits_scaling=config.hidden_size / base,
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, _GGUF_KEYS)
    layers, size = values["num_hidden_layers"], values["hidden_size"]
    return {
        **values,
        **_GGUF_DEFAULTS,
        **_multipliers(header.metadata, max(layers, 1), size),
    }


def _multipliers(metadata: Mapping[str, Any], layers: int, size: int) -> dict[str, float]:
    """Return the multipliers that a file has in float32, as config.json's decimals that they came from."""
    found = {}
    if "minicpm.embedding_scale" in metadata:
        found["scale_emb"] = float32_number(metadata, "minicpm.embedding_scale")
    if "minicpm.residual_scale" in metadata:
        found["scale_depth"] = float32_number(metadata, "minicpm.residual_scale") * layers**0.5
    scale = float32_number(metadata, "minicpm.logit_scale", 0.0)
    if scale:
        found["dim_model_base"] = size / scale
    return {key: float32_number(found, key) for key in found}


MINICPM = Architecture(
    model_type="minicpm",
    defaults={"tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2},
    read_config=_to_model_config,
    is_in_transformers=False,
    gguf=GGUFFamily(
        architecture="minicpm",
        to_hf_config=_gguf_to_hf_config,
        layout=dataclasses.replace(llama.GGUF_LAYOUT, ignored=gguf_header.LONGROPE_TENSORS),  # read by to_hf_config
    ),
)
