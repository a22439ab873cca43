"""ERNIE 4.5: a Llama that turns neighbouring dimensions, in safetensors too.

That of 21B (model_type ernie4_5_moe) has experts beside a shared one, behind the first layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.checkpoints.tensor_map import TensorLayout

_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE_DEFAULTS: Mapping[str, Any] = {
    **{key: value for key, value in _DEFAULTS.items() if key != "head_dim"},
    "num_key_value_heads": 4,
    "moe_intermediate_size": 1536,
    "num_experts_per_tok": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
}
_MOE_NAMES = {
    "model.layers.{i}.mlp.gate.e_score_correction_bias": "model.layers.{i}.mlp.moe_statics.e_score_correction_bias"
}
# A layer that guesses one more token ahead, which llama.cpp and transformers leave out too.
_GUESSING = frozenset(
    {
        *(
            name.replace("model.layers.", "model.mtp_block.") + f".{kind}"
            for name in llama.GGUF_NAMES
            for kind in ("weight", "bias")
            if name.startswith("model.layers.")
        ),
        *(f"model.mtp_{part}.{{i}}.weight" for part in ("emb_norm", "hidden_norm", "linear_proj")),
    }
)
_GGUF_MOE_KEYS = experts.gguf_keys("moe_num_experts") | {
    "expert_shared_count": ("moe_num_shared_experts", 0),
    "leading_dense_block_count": ("moe_layer_start_index", 0),
    "interleave_moe_layer_step": ("moe_layer_interval", 1),
    "expert_shared_feed_forward_length": None,
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    has_biases = hf_values.flag(values, "use_bias")
    return dataclasses.replace(
        llama.to_model_config(values),
        **hf_values.biases(has_biases),
    )


def _to_moe_config(values: dict[str, Any]) -> ModelConfig:
    if hf_values.flag(values, "use_bias"):
        raise CheckpointError(
            "config.json: use_bias is true; experts that have no biases beside others are not supported."
        )
    config = llama.to_model_config(values)
    first, last = (hf_values.whole_number(values, f"moe_layer_{end}_index") for end in ("start", "end"))
    step = hf_values.bounded(values, "moe_layer_interval")
    layers = range(config.num_hidden_layers)
    having = [i for i in layers if (i + 1) % step == 0 and first <= i and (last == -1 or i <= last)]
    size, shared = (
        hf_values.whole_number(values, f"moe_{part}") for part in ("intermediate_size", "num_shared_experts")
    )
    return dataclasses.replace(
        config,
        layers_without_experts=tuple(i for i in layers if i not in having),
        moe_intermediate_size=size,
        shared_expert_intermediate_size=size * shared or None,
        **experts.expert_fields(values, "moe_num_experts"),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    return gguf_header.to_hf_config(header) | {"use_bias": "blk.0.attn_q.bias" in header.shapes}


ERNIE4_5 = Architecture(
    model_type="ernie4_5",
    defaults=_DEFAULTS,
    read_config=_to_model_config,
    layout=TensorLayout(row_orders=llama.GGUF_ROW_ORDERS),
    gguf=GGUFFamily(
        architecture="ernie4_5",
        to_hf_config=_gguf_to_hf_config,
        layout=llama.GGUF_LAYOUT,
    ),
)
ERNIE4_5_MOE = Architecture(
    model_type="ernie4_5_moe",
    defaults=_MOE_DEFAULTS,
    renamed={"num_experts_per_tok": "moe_k"},
    read_config=_to_moe_config,
    features={
        **hf_values.biases(False),
        "expert_choice_bias": True,
    },
    layout=TensorLayout(
        names=_MOE_NAMES,
        ignored=_GUESSING,
        row_orders=llama.GGUF_ROW_ORDERS,
        ones_elsewhere=frozenset({"model.layers.{i}.mlp.moe_statics.e_score_correction_bias"}),
    ),
    gguf=GGUFFamily(
        architecture="ernie4_5-moe",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, _GGUF_MOE_KEYS),
        # A bias of one row there, too.
        layout=dataclasses.replace(experts.GGUF_LAYOUT, ones_elsewhere=frozenset({"blk.{i}.exp_probs_b.bias"})),
        has_experts=True,
    ),
)
