"""Mixtral, a Mistral whose feed-forwards are experts, and PhiMoE."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import SPARSEMIXER_MARGIN, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, gguf_header, hf_values, llama, phi3
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.checkpoints.tensor_map import TensorLayout

_NAMES = {
    "model.layers.{i}.mlp.gate": "model.layers.{i}.block_sparse_moe.gate",
    "model.layers.{i}.mlp.experts.{e}.gate_proj": "model.layers.{i}.block_sparse_moe.experts.{e}.w1",
    "model.layers.{i}.mlp.experts.{e}.up_proj": "model.layers.{i}.block_sparse_moe.experts.{e}.w3",
    "model.layers.{i}.mlp.experts.{e}.down_proj": "model.layers.{i}.block_sparse_moe.experts.{e}.w2",
}
_MLX_NAMES = _NAMES | experts.mlx_names("model.layers.{i}.block_sparse_moe.switch_mlp")
_GGUF_KEYS = experts.gguf_keys("num_local_experts", size=None)


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values | {"attention_bias": False, "mlp_bias": False})
    return dataclasses.replace(
        config,
        sliding_window=hf_values.optional_whole_number(values, "sliding_window"),
        **experts.expert_fields(values, "num_local_experts"),
    )


MIXTRAL = Architecture(
    model_type="mixtral",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read_config=_to_model_config,
    layout=TensorLayout(names=_NAMES),
    mlx=TensorLayout(names=_MLX_NAMES),
    gguf=GGUFFamily(
        architecture="llama",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, _GGUF_KEYS),
        layout=experts.GGUF_LAYOUT,
        has_experts=True,
    ),
)


# PhiMoE (Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE): a Mixtral with layer norms that weights experts in its own way.
_SCALES = ("short_mscale", "long_mscale")


def _to_phimoe_config(values: dict[str, Any]) -> ModelConfig:
    if hf_values.number(values, "router_jitter_noise", 0.01) * 2 != SPARSEMIXER_MARGIN:
        raise CheckpointError(
            f"config.json: router_jitter_noise is {values['router_jitter_noise']!r}; it must be 0.01."
        )
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(values.get(key), Mapping):
            values[key] = _with_one_scale(phi3.with_longrope(values[key]))
    config = llama.to_model_config({**values, "mlp_bias": False})
    return dataclasses.replace(
        config,
        lm_head_bias=hf_values.flag(values, "lm_head_bias"),
        sliding_window=hf_values.optional_whole_number(values, "sliding_window"),
        **experts.expert_fields(values, "num_local_experts"),
    )


def _with_one_scale(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of LongRoPE whose scale of short texts is that of long ones, as an attention_factor."""
    scales = {hf_values.number(settings, key, 1.0) for key in _SCALES if settings.get(key) is not None}
    if len(scales) > 1:
        raise CheckpointError(
            f"config.json: short_mscale is {settings['short_mscale']!r} and long_mscale {settings['long_mscale']!r}; "
            "they must be the same."
        )
    kept = {key: value for key, value in settings.items() if key not in _SCALES}
    return {**kept, "attention_factor": scales.pop()} if scales else kept


PHIMOE = Architecture(
    model_type="phimoe",
    defaults={**MIXTRAL.defaults, "num_local_experts": 16},
    fixed={"num_experts_per_tok": 2},  # transformers chooses so many, whatever a config says
    read_config=_to_phimoe_config,
    features={"norm": "layer", "scoring_func": "sparsemixer", "norm_topk_prob": False},
    layout=MIXTRAL.layout,
    mlx=MIXTRAL.mlx,
    gguf=None,
)
