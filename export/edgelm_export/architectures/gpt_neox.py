"""GPT-NeoX and Pythia: layer norms, attention and feed-forward in parallel, and heads that turn in part."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import GGUFKeys
from edgelm_export.architectures.phi3 import GGUF_FUSED
from edgelm_export.checkpoints.tensor_map import TensorLayout

_BLOCK = "gpt_neox.layers.{i}"
_NAMES = {
    "model.embed_tokens": "gpt_neox.embed_in",
    "model.layers.{i}.input_layernorm": f"{_BLOCK}.input_layernorm",
    **{f"model.layers.{{i}}.self_attn.{part}_proj": f"{_BLOCK}.attention.query_key_value" for part in "qkv"},
    "model.layers.{i}.self_attn.o_proj": f"{_BLOCK}.attention.dense",
    "model.layers.{i}.post_attention_layernorm": f"{_BLOCK}.post_attention_layernorm",
    "model.layers.{i}.mlp.up_proj": f"{_BLOCK}.mlp.dense_h_to_4h",
    "model.layers.{i}.mlp.down_proj": f"{_BLOCK}.mlp.dense_4h_to_h",
    "model.norm": "gpt_neox.final_layer_norm",
    "lm_head": "embed_out",
}
_MLX_BLOCK = "model.h.{i}"
_MLX_NAMES = {
    name: source.replace(_BLOCK, _MLX_BLOCK).replace("gpt_neox.", "model.") for name, source in _NAMES.items()
}
_MLX_NAMES["lm_head"] = "model.embed_out"


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config({**values, "num_key_value_heads": None, "head_dim": None}, partial=0.25)
    return dataclasses.replace(config, parallel_residual=hf_values.flag(values, "use_parallel_residual"))


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    keys: GGUFKeys = {"use_parallel_residual": ("use_parallel_residual", True)}
    values = gguf_header.to_hf_config(header, keys, norm="layer", turns_a_part=True)
    return values | {"attention_bias": "blk.0.attn_qkv.bias" in header.shapes}


GPT_NEOX = Architecture(
    model_type="gpt_neox",
    defaults={
        "max_position_embeddings": 2048,
        "hidden_act": "gelu",
        "rms_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    renamed={
        "rms_norm_eps": "layer_norm_eps",
        "rope_theta": "rotary_emb_base",
        "partial_rotary_factor": "rotary_pct",
    },
    read_config=_to_model_config,
    features={"norm": "layer", "mlp_gated": False, "mlp_bias": True},
    layout=TensorLayout(
        names=_NAMES,
        # The causal mask, which older versions of transformers stored.
        ignored=frozenset(f"{_BLOCK}.attention.{name}" for name in ("bias", "masked_bias")),
        by_head=frozenset({f"{_BLOCK}.attention.query_key_value"}),
    ),
    mlx=TensorLayout(names=_MLX_NAMES, by_head=frozenset({f"{_MLX_BLOCK}.attention.query_key_value"})),
    gguf=GGUFFamily(
        architecture="gptneox",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=llama.GGUF_NAMES | GGUF_FUSED),
    ),
)
