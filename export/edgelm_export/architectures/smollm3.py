"""SmolLM3: a Llama of which every fourth layer does not turn its heads."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values)
    layers = range(config.num_hidden_layers)
    without_rope = hf_values.layers_without_rope(values, config.num_hidden_layers)
    has_windows = hf_values.flag(values, "use_sliding_window") or hf_values.layer_types(values) is not None
    window = values.get("sliding_window") if has_windows else None
    kinds = ["sliding_attention" if layer in without_rope else "full_attention" for layer in layers]
    return dataclasses.replace(
        config,
        layers_without_rope=without_rope,
        **hf_values.windows(values, window, kinds),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header)
    # llama.cpp takes the interval of the one published model.
    return {"no_rope_layer_interval": 4, **values}


SMOLLM3 = Architecture(
    model_type="smollm3",
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "no_rope_layer_interval": 4,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    read_config=_to_model_config,
    gguf=GGUFFamily(
        architecture="smollm3",
        to_hf_config=_gguf_to_hf_config,
        layout=llama.GGUF_LAYOUT,
    ),
)
