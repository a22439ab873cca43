"""K-EXAONE: windows and heads of EXAONE 4, norms before each part, and experts behind the first layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import exaone, experts, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import WINDOW, WINDOW_PATTERN
from edgelm_export.tensor_map import TensorLayout

_MLP = "model.layers.{i}.mlp"
_NAMES = {f"{_MLP}.gate.e_score_correction_bias": f"{_MLP}.e_score_correction_bias"}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = exaone.EXAONE4.to_model_config(values)
    return dataclasses.replace(config, norm_placement="pre", **sigmoid_experts.fields(values, config.num_hidden_layers))


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    name = "exaone-moe"
    values = sigmoid_experts.gguf_values(header, {**WINDOW, WINDOW_PATTERN: None})
    pattern = header.metadata.get(f"{name}.{WINDOW_PATTERN}")
    kinds = None
    if isinstance(pattern, list):
        layers = max(values["num_hidden_layers"], 0)
        kinds = ["sliding_attention" if slides else "full_attention" for slides in pattern[:layers]]
    return values | {"layer_types": kinds}


EXAONE_MOE = Architecture(
    model_type="exaone_moe",
    defaults={
        "bos_token_id": 1,
        "eos_token_id": 53,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 1024,
        "n_routed_experts": 64,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
    renamed={"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"},
    read_config=_to_model_config,
    # A layer that guesses one more token ahead has no experts; transformers leaves it out too.
    layout=TensorLayout(names=_NAMES, ignored=experts.guessing_names(llama.GGUF_NAMES | llama.GGUF_QK_NORMS)),
    mlx=TensorLayout(names=experts.MLX_NAMES),
    gguf=GGUFFamily(
        architecture="exaone-moe",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS, has_more_layers=True),
        has_experts=True,
    ),
)
