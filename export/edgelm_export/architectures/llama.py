"""Llama: Llama 1 to 3, SmolLM2, TinyLlama, and every other model with model_type "llama".

Other families are read as a Llama and then told apart by their features, so their rows start from the functions and the
names here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import hf_values
from edgelm_export.architectures.architecture import Architecture, GGUFHeader
from edgelm_export.architectures.gguf_values import (
    float32_number,
    refuse_unknown_keys,
    rope_scaling,
    token_id_values,
    whole_number,
)

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

# What of `<architecture>.*` is read below or repeats what the tensors say.
_GGUF_KEYS = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
)


def to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Read config.json's values as those of a Llama."""
    hidden_size = hf_values.whole_number(values, "hidden_size")
    heads = hf_values.whole_number(values, "num_attention_heads")
    context_length = hf_values.whole_number(values, "max_position_embeddings", 2048)
    rope_theta, rope_scaling = hf_values.rope(values, context_length)
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
        max_position_embeddings=context_length,
        norm_eps=hf_values.number(values, "rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        hidden_act=hf_values.activation(values, "silu"),
        mlp_bias=hf_values.flag(values, "mlp_bias"),
        attention_bias=attention_bias,
        attention_output_bias=attention_bias,
        tie_word_embeddings=hf_values.flag(values, "tie_word_embeddings"),
        bos_token_id=next(iter(hf_values.token_ids(values, "bos_token_id")), None),
        eos_token_ids=hf_values.token_ids(values, "eos_token_id"),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_to_hf_config(header, "llama")
    if header.rope_factors is not None:
        values["rope_scaling"] = _llama3_scaling(header.rope_factors, values["rope_theta"], values["head_dim"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **values,
        "attention_bias": "blk.0.attn_q.bias" in header.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in header.shapes,
    }


def gguf_to_hf_config(header: GGUFHeader, architecture: str) -> dict[str, Any]:
    """Make the values of config.json that all families share; `architecture` is the prefix of the metadata's keys.

    Raises:
        CheckpointError: the metadata lacks a value, or asks for a feature that is not supported.
    """
    metadata, shapes, prefix = header.metadata, header.shapes, f"{architecture}."
    refuse_unknown_keys(metadata, prefix, frozenset(f"{prefix}{key}" for key in _GGUF_KEYS))
    if not shapes.get("token_embd.weight"):
        raise CheckpointError("The GGUF file has no tensor token_embd.weight: it is not a whole model.")
    hidden_size = whole_number(metadata, f"{prefix}embedding_length")
    heads = whole_number(metadata, f"{prefix}attention.head_count")
    head_dim = whole_number(metadata, f"{prefix}attention.key_length", hidden_size // max(heads, 1))
    for key in (f"{prefix}rope.dimension_count", f"{prefix}attention.value_length"):
        if whole_number(metadata, key, head_dim) != head_dim:
            raise CheckpointError(f"{key} is {metadata[key]!r}; supported is the head's own size, {head_dim}.")
    theta = float32_number(metadata, f"{prefix}rope.freq_base", 10000.0)
    return {
        # The embedding has the last word: some files pad it beyond the tokenizer's vocabulary.
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": hidden_size,
        "intermediate_size": whole_number(metadata, f"{prefix}feed_forward_length"),
        "num_hidden_layers": whole_number(metadata, f"{prefix}block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": whole_number(metadata, f"{prefix}attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": whole_number(metadata, f"{prefix}context_length"),
        "rms_norm_eps": float32_number(metadata, f"{prefix}attention.layer_norm_rms_epsilon"),
        # The older pair of keys, which transformers 4 and 5 both read.
        "rope_theta": theta,
        "rope_scaling": rope_scaling(metadata, prefix),
        "tie_word_embeddings": "output.weight" not in shapes,
        **token_id_values(metadata),
    }


def _llama3_scaling(factors: NDArray[np.float32], theta: float, head_dim: int) -> dict[str, Any] | None:
    """Find the llama3 settings that llama.cpp's converter computed `factors` from.

    Llama 3.1 to 3.3 differ in `factor` alone (8 or 32), so the other settings are taken to be theirs, and checked.
    """
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    kept = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - kept) / factor + kept)
    # The converter computes in float32, where the steepest factors are good to about 1e-5.
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4, atol=0):
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


LLAMA = Architecture(
    model_type="llama",
    to_model_config=to_model_config,
    tensor_names={name: name for name in GGUF_NAMES},
    # Older versions of transformers stored this table, which the config gives.
    ignored_tensors=frozenset({"model.layers.{i}.self_attn.rotary_emb.inv_freq"}),
    gguf_architecture="llama",
    gguf_to_hf_config=_gguf_to_hf_config,
    gguf_tensor_names=GGUF_NAMES,
    gguf_ignored_tensors=frozenset({"rope_freqs.weight"}),  # read by gguf_to_hf_config
    gguf_interleaved=frozenset({"model.layers.{i}.self_attn.q_proj", "model.layers.{i}.self_attn.k_proj"}),
)
