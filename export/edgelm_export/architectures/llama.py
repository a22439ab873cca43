"""Llama: Llama 1 to 3, SmolLM2, TinyLlama, and every other model with model_type "llama".

Other families are read as a Llama and then told apart by their features, so their rows start from the functions and the
names here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gguf_header, hf_values
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import NO_KEYS, GGUFKeys
from edgelm_export.checkpoints.tensor_map import TensorLayout

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
    "model.layers.{i}.self_attn.q_proj": "blk.{i}.attn_q",
    "model.layers.{i}.self_attn.k_proj": "blk.{i}.attn_k",
    "model.layers.{i}.self_attn.v_proj": "blk.{i}.attn_v",
    "model.layers.{i}.self_attn.o_proj": "blk.{i}.attn_output",
    "model.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
    "model.layers.{i}.mlp.gate_proj": "blk.{i}.ffn_gate",
    "model.layers.{i}.mlp.up_proj": "blk.{i}.ffn_up",
    "model.layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
    "model.norm": "output_norm",
    "lm_head": "output",
}
GGUF_QK_NORMS = {
    "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
    "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
}


def to_model_config(values: Mapping[str, Any], *, partial: float | None = None) -> ModelConfig:
    """Read config.json's values as those of a Llama; `partial` is a family's own partial_rotary_factor."""
    hidden_size = hf_values.whole_number(values, "hidden_size")
    heads = hf_values.whole_number(values, "num_attention_heads")
    context_length = hf_values.whole_number(values, "max_position_embeddings", 2048)
    attention_bias = hf_values.flag(values, "attention_bias")
    return ModelConfig(
        model_type="llama",
        vocab_size=hf_values.whole_number(values, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=hf_values.whole_number(values, "intermediate_size"),
        num_hidden_layers=hf_values.whole_number(values, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=hf_values.whole_number(values, "num_key_value_heads", heads),
        head_dim=hf_values.whole_number(values, "head_dim", hidden_size // max(heads, 1)),
        norm_eps=hf_values.number(values, "rms_norm_eps", 1e-6),
        **hf_values.rope(values, context_length, partial=partial),
        hidden_act=hf_values.activation(values, "silu"),
        mlp_bias=hf_values.flag(values, "mlp_bias"),
        attention_bias=attention_bias,
        attention_output_bias=attention_bias,
        tie_word_embeddings=hf_values.flag(values, "tie_word_embeddings"),
        bos_token_id=hf_values.first_token_id(values, "bos_token_id"),
        eos_token_ids=hf_values.token_ids(values, "eos_token_id"),
    )


def gguf_values(header: GGUFHeader, keys: GGUFKeys = NO_KEYS) -> dict[str, Any]:
    """Make config.json's values of a header, with the settings that Llama 3's factors come from."""
    values = gguf_header.to_hf_config(header, keys)
    factors = header.rope_factors.get("rope_freqs.weight")
    if factors is not None:
        values["rope_scaling"] = _llama3_scaling(factors, values["rope_theta"], values["head_dim"])
    return values


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    return gguf_values(header) | {"mlp_bias": "blk.0.ffn_up.bias" in header.shapes}


def _llama3_scaling(factors: NDArray[np.float32], theta: float, head_dim: int) -> dict[str, Any] | None:
    """Find the llama3 settings that llama.cpp's converter computed `factors` from.

    Llama 3.1 to 3.3 differ in `factor` alone (8 or 32), so the other settings are taken to be theirs, and checked.
    """
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    wavelengths = 2 * np.pi * theta ** (np.arange(0, 2 * len(factors), 2) / head_dim)
    kept = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - kept) / factor + kept)
    # The converter computes in float32, where the steepest factors are good to about 1e-5.
    if factors.shape != (head_dim // 2,) or not np.allclose(factors, expected, rtol=1e-4, atol=0):
        raise CheckpointError(
            "rope_freqs.weight does not hold the frequency factors of Llama 3.1 to 3.3, and others are not supported."
        )
    if factor == 1.0:
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


# llama.cpp rotates neighbours in the families that its converter treats as Llamas.
GGUF_ROW_ORDERS = {"model.layers.{i}.self_attn.q_proj": "pairs", "model.layers.{i}.self_attn.k_proj": "pairs"}
GGUF_LAYOUT = TensorLayout(names=GGUF_NAMES, row_orders=GGUF_ROW_ORDERS)

GGUF = GGUFFamily(
    architecture="llama",
    to_hf_config=_gguf_to_hf_config,
    layout=dataclasses.replace(GGUF_LAYOUT, ignored=frozenset({"rope_freqs.weight"})),  # read by to_hf_config
)
LLAMA = Architecture(
    model_type="llama",
    # Not of every family that is read as a Llama.
    defaults={"bos_token_id": 1, "eos_token_id": 2},
    read_config=to_model_config,
    gguf=GGUF,
)
