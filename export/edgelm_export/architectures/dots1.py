"""Rednote's dots.llm1: a Qwen3 with experts behind the first layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, hf_values, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.checkpoints.tensor_map import TensorLayout


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values)
    window = hf_values.optional_whole_number(values, "sliding_window")
    first = hf_values.whole_number(values, "max_window_layers")
    layers = range(config.num_hidden_layers)
    kinds = ["sliding_attention" if window is not None and layer >= first else "full_attention" for layer in layers]
    return dataclasses.replace(
        config,
        **hf_values.windows(values, window, kinds),
        **sigmoid_experts.fields(values, config.num_hidden_layers),
    )


DOTS1 = Architecture(
    model_type="dots1",
    # Of experts, transformers takes none.
    defaults={
        "num_key_value_heads": 32,
        "first_k_dense_replace": 0,
        "sliding_window": 4096,
        "max_window_layers": 62,
    },
    read_config=_to_model_config,
    features={"qk_norm": True},
    mlx=TensorLayout(names=experts.mlx_names("model.layers.{i}.mlp.experts")),
    gguf=GGUFFamily(
        architecture="dots1",
        to_hf_config=lambda header: sigmoid_experts.gguf_values(header) | {"sliding_window": None},
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS),
        has_experts=True,
    ),
)
