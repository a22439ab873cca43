"""MPT: layer norms without biases, a plain feed-forward, and scores that fall with the distance of a key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import float32_number
from edgelm_export.architectures.phi3 import GGUF_FUSED
from edgelm_export.checkpoints.tensor_map import TensorLayout

# Features that have no place in ModelConfig, and the value that turns each off.
_NEUTRAL_OF_ATTENTION: Mapping[str, Any] = {
    "attn_type": "multihead_attention", "clip_qkv": None, "prefix_lm": False, "qk_ln": False, "alibi": True,
    "alibi_bias_max": 8,
}  # fmt: skip
_ALIBI = "attention.max_alibi_bias"  # llama.cpp's key
_BLOCK = "transformer.blocks.{i}"
_NAMES = {
    "model.embed_tokens": "transformer.wte",
    "model.layers.{i}.input_layernorm": f"{_BLOCK}.norm_1",
    **{f"model.layers.{{i}}.self_attn.{part}_proj": f"{_BLOCK}.attn.Wqkv" for part in "qkv"},
    "model.layers.{i}.self_attn.o_proj": f"{_BLOCK}.attn.out_proj",
    "model.layers.{i}.post_attention_layernorm": f"{_BLOCK}.norm_2",
    "model.layers.{i}.mlp.up_proj": f"{_BLOCK}.ffn.up_proj",
    "model.layers.{i}.mlp.down_proj": f"{_BLOCK}.ffn.down_proj",
    "model.norm": "transformer.norm_f",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    attention = values.get("attn_config", {})
    if not isinstance(attention, Mapping):
        raise CheckpointError(f"config.json: attn_config is {attention!r}; it must be an object.")
    for key, value in _NEUTRAL_OF_ATTENTION.items():
        if attention.get(key, value) != value:
            raise CheckpointError(f"config.json: attn_config.{key} is {attention[key]!r}; supported is {value!r}.")
    fixed = {"num_key_value_heads": None, "head_dim": None, "hidden_act": "gelu"}
    size = hf_values.whole_number(values, "expansion_ratio") * hf_values.whole_number(values, "hidden_size")
    config = llama.to_model_config(values | fixed | {"intermediate_size": size})
    return dataclasses.replace(config, attention_multiplier=hf_values.optional_number(attention, "softmax_scale"))


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, {_ALIBI: None}, norm="layer")
    steepest, size = float32_number(header.metadata, f"mpt.{_ALIBI}", 0.0), values["hidden_size"]
    return values | {
        "expansion_ratio": values["intermediate_size"] // max(size, 1),
        "attn_config": {"alibi": steepest > 0, "alibi_bias_max": steepest},
    }


MPT = Architecture(
    model_type="mpt",
    defaults={
        "vocab_size": 50368,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "expansion_ratio": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    null_keys=frozenset(),
    fixed={"no_bias": True, "logit_scale": None},
    renamed={
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "max_seq_len",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    read_config=_to_model_config,
    features={"norm": "layer_no_bias", "position": "alibi", "mlp_gated": False},
    layout=TensorLayout(names=_NAMES),
    gguf=GGUFFamily(
        architecture="mpt", to_hf_config=_gguf_to_hf_config, layout=TensorLayout(names=llama.GGUF_NAMES | GGUF_FUSED)
    ),
)
