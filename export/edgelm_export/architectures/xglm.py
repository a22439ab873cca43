"""XGLM, which knows thirty languages: layer norms, biases everywhere, and fairseq's sinusoids for positions."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.tensor_map import TensorLayout

_LAYER = "model.layers.{i}"
_NAMES = {
    "model.embed_tokens": "model.embed_tokens",
    f"{_LAYER}.input_layernorm": f"{_LAYER}.self_attn_layer_norm",
    **{f"{_LAYER}.self_attn.{part}_proj": f"{_LAYER}.self_attn.{part}_proj" for part in "qkv"},
    f"{_LAYER}.self_attn.o_proj": f"{_LAYER}.self_attn.out_proj",
    f"{_LAYER}.post_attention_layernorm": f"{_LAYER}.final_layer_norm",
    f"{_LAYER}.mlp.up_proj": f"{_LAYER}.fc1",
    f"{_LAYER}.mlp.down_proj": f"{_LAYER}.fc2",
    "model.norm": "model.layer_norm",
    "lm_head": "lm_head",
}
# Computed, not learned, but older versions of transformers stored them.
_SINUSOIDS = frozenset({"model.embed_positions.weights"})


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    if hf_values.flag(values, "add_cross_attention"):
        raise CheckpointError("config.json: add_cross_attention is true; supported is an XGLM that reads one text.")
    size = hf_values.whole_number(values, "d_model")
    root = abs(hf_values.number(values, "d_model", 0.0)) ** 0.5  # of a number that a float holds
    renamed = {
        "hidden_size": size,
        "intermediate_size": values["ffn_dim"],
        "num_hidden_layers": values["num_layers"],
        "num_attention_heads": values["attention_heads"],
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": values["activation_function"],
        "rms_norm_eps": 1e-5,
    }
    return dataclasses.replace(
        llama.to_model_config(values | renamed),
        norm="layer",
        position="sinusoidal_fairseq",
        embedding_multiplier=root if hf_values.flag(values, "scale_embedding") else 1.0,
        mlp_gated=False,
        mlp_bias=True,
        attention_bias=True,
        attention_output_bias=True,
    )


XGLM = Architecture(
    model_type="xglm",
    defaults={
        "vocab_size": 256008,
        "max_position_embeddings": 2048,
        "d_model": 1024,
        "ffn_dim": 4096,
        "num_layers": 24,
        "attention_heads": 16,
        "activation_function": "gelu",
        "scale_embedding": True,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    null_keys=frozenset(),
    read_config=_to_model_config,
    layout=TensorLayout(names=_NAMES, ignored=_SINUSOIDS),
    gguf=None,
)
