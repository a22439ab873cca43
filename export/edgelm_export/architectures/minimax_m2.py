"""MiniMax M2 (230B-A10B): a Llama that turns half of each head, with norms over all heads and experts in each layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import GGUFKeys
from edgelm_export.checkpoints.tensor_map import TensorLayout

_BLOCK = "model.layers.{i}.block_sparse_moe"
_MLP = "model.layers.{i}.mlp"
_NAMES = {
    f"{_MLP}.gate": f"{_BLOCK}.gate",
    f"{_MLP}.gate.e_score_correction_bias": f"{_BLOCK}.e_score_correction_bias",
    f"{_MLP}.experts.{{e}}.gate_proj": f"{_BLOCK}.experts.{{e}}.w1",
    f"{_MLP}.experts.{{e}}.down_proj": f"{_BLOCK}.experts.{{e}}.w2",
    f"{_MLP}.experts.{{e}}.up_proj": f"{_BLOCK}.experts.{{e}}.w3",
}
_GGUF_KEYS: GGUFKeys = {**experts.gguf_keys("num_local_experts"), "expert_gating_func": None}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    head_dim = hf_values.bounded(values, "head_dim")
    part = hf_values.number(values, "rotary_dim", head_dim) / head_dim
    return dataclasses.replace(
        llama.to_model_config(values, partial=part), **experts.expert_fields(values, "num_local_experts")
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    experts.check_gguf_scoring(header)
    values = gguf_header.to_hf_config(header, _GGUF_KEYS, turns_a_part=True)
    own = values.pop("moe_intermediate_size")
    if own != values["intermediate_size"]:
        raise CheckpointError(
            f"GGUF metadata: minimax-m2.expert_feed_forward_length is {own}; supported is feed_forward_length, "
            f"{values['intermediate_size']}."
        )
    return values


MINIMAX_M2 = Architecture(
    model_type="minimax_m2",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "bos_token_id": 200034,
        "eos_token_id": 200020,
    },
    renamed={"num_local_experts": "num_experts"},
    read_config=_to_model_config,
    features={
        **hf_values.biases(False),
        "qk_norm": True,
        "qk_norm_scope": "projection",
        "scoring_func": "sigmoid",
        "expert_choice_bias": True,
    },
    layout=TensorLayout(names=_NAMES, has_more_layers=True),
    gguf=GGUFFamily(
        architecture="minimax-m2",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS),
        has_experts=True,
    ),
)
