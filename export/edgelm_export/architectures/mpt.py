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
from edgelm_export.tensor_map import TensorLayout

# Features that have no place in ModelConfig, and the value that turns each off.
_NEUTRAL: Mapping[str, Any] = {"no_bias": True, "logit_scale": None}
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
    "lm_head": "lm_head",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    attention = values.get("attn_config", {})
    if not isinstance(attention, Mapping):
        raise CheckpointError(f"config.json: attn_config is {attention!r}; it must be an object.")
    for name, given, neutral in (("", values, _NEUTRAL), ("attn_config.", attention, _NEUTRAL_OF_ATTENTION)):
        for key, value in neutral.items():
            if given.get(key, value) != value:
                raise CheckpointError(f"config.json: {name}{key} is {given[key]!r}; supported is {value!r} alone.")
    size = hf_values.whole_number(values, "d_model")
    renamed = {
        "hidden_size": size,
        "intermediate_size": hf_values.whole_number(values, "expansion_ratio") * size,
        "num_hidden_layers": values["n_layers"],
        "num_attention_heads": values["n_heads"],
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": values["max_seq_len"],
        "rms_norm_eps": values["layer_norm_epsilon"],
        "hidden_act": "gelu",
    }
    config = llama.to_model_config(values | renamed)
    return dataclasses.replace(
        config,
        norm="layer_no_bias",
        position="alibi",
        mlp_gated=False,
        attention_multiplier=hf_values.optional_number(attention, "softmax_scale"),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, "mpt", keys=frozenset({_ALIBI}), norm="layer")
    steepest, size = float32_number(header.metadata, f"mpt.{_ALIBI}", 0.0), values["hidden_size"]
    return values | {
        "d_model": size,
        "n_heads": values["num_attention_heads"],
        "n_layers": values["num_hidden_layers"],
        "expansion_ratio": values["intermediate_size"] // max(size, 1),
        "max_seq_len": values["max_position_embeddings"],
        "layer_norm_epsilon": values["rms_norm_eps"],
        "attn_config": {"alibi": steepest > 0, "alibi_bias_max": steepest},
    }


MPT = Architecture(
    model_type="mpt",
    defaults={
        "vocab_size": 50368,
        "d_model": 2048,
        "n_heads": 16,
        "n_layers": 24,
        "expansion_ratio": 4,
        "max_seq_len": 2048,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    null_keys=frozenset(),
    read_config=_to_model_config,
    layout=TensorLayout(names=_NAMES, prefix="transformer."),
    gguf=GGUFFamily(
        architecture="mpt", to_hf_config=_gguf_to_hf_config, layout=TensorLayout(names=llama.GGUF_NAMES | GGUF_FUSED)
    ),
)
