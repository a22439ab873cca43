"""XGLM, which knows thirty languages: layer norms, biases everywhere, and fairseq's sinusoids for positions."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_LAYER = "model.layers.{i}"
_NAMES = {
    f"{_LAYER}.input_layernorm": f"{_LAYER}.self_attn_layer_norm",
    f"{_LAYER}.self_attn.o_proj": f"{_LAYER}.self_attn.out_proj",
    f"{_LAYER}.post_attention_layernorm": f"{_LAYER}.final_layer_norm",
    f"{_LAYER}.mlp.up_proj": f"{_LAYER}.fc1",
    f"{_LAYER}.mlp.down_proj": f"{_LAYER}.fc2",
    "model.norm": "model.layer_norm",
}
# Computed, not learned, but older versions of transformers stored them.
_SINUSOIDS = frozenset({"model.embed_positions.weights"})


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    if hf_values.flag(values, "add_cross_attention"):
        raise CheckpointError("config.json: add_cross_attention is true; supported is an XGLM that reads one text.")
    config = llama.to_model_config({**values, "num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-5})
    is_scaled = hf_values.flag(values, "scale_embedding")
    return dataclasses.replace(config, embedding_multiplier=config.hidden_size**0.5 if is_scaled else 1.0)


XGLM = Architecture(
    model_type="xglm",
    defaults={
        "vocab_size": 256008,
        "max_position_embeddings": 2048,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "scale_embedding": True,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    null_keys=frozenset(),
    renamed={
        "hidden_size": "d_model",
        "intermediate_size": "ffn_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "attention_heads",
        "hidden_act": "activation_function",
    },
    read_config=_to_model_config,
    features={
        "norm": "layer",
        "position": "sinusoidal_fairseq",
        "mlp_gated": False,
        **hf_values.biases(True),
    },
    layout=TensorLayout(names=_NAMES, ignored=_SINUSOIDS),
    gguf=None,
)
