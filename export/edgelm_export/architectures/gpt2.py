"""GPT-2: layer norms, learned positions, a plain feed-forward, and weights stored as [in, out]."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.phi3 import GGUF_FUSED
from edgelm_export.tensor_map import TensorLayout

# Llama's names for the same numbers.
_RENAMED = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
# Features that have no place in ModelConfig, and the value that turns each off.
_NEUTRAL = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}

_BLOCK = "transformer.h.{i}"
NAMES = {
    "model.embed_tokens": "transformer.wte",
    "model.embed_positions": "transformer.wpe",
    "model.layers.{i}.input_layernorm": f"{_BLOCK}.ln_1",
    "model.layers.{i}.self_attn.q_proj": f"{_BLOCK}.attn.c_attn",
    "model.layers.{i}.self_attn.k_proj": f"{_BLOCK}.attn.c_attn",
    "model.layers.{i}.self_attn.v_proj": f"{_BLOCK}.attn.c_attn",
    "model.layers.{i}.self_attn.o_proj": f"{_BLOCK}.attn.c_proj",
    "model.layers.{i}.post_attention_layernorm": f"{_BLOCK}.ln_2",
    "model.layers.{i}.mlp.up_proj": f"{_BLOCK}.mlp.c_fc",
    "model.layers.{i}.mlp.down_proj": f"{_BLOCK}.mlp.c_proj",
    "model.norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
GGUF_NAMES = llama.GGUF_NAMES | GGUF_FUSED | {"model.embed_positions": "position_embd"}
# The causal mask, which older versions of transformers stored.
MASKS = frozenset({f"{_BLOCK}.attn.bias", f"{_BLOCK}.attn.masked_bias"})


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    for key, neutral in _NEUTRAL.items():
        if values.get(key, neutral) != neutral:
            raise CheckpointError(f"config.json: {key} is {values[key]!r}; supported is {neutral!r} alone.")
    renamed = {key: values.get(old) for key, old in _RENAMED.items()}
    renamed["intermediate_size"] = hf_values.whole_number(
        values, "n_inner", 4 * hf_values.whole_number(values, "n_embd")
    )
    config = llama.to_model_config(values | renamed | {"num_key_value_heads": None, "head_dim": None})
    return dataclasses.replace(
        config,
        norm="layer",
        position="learned",
        mlp_gated=False,
        mlp_bias=True,
        attention_bias=True,
        attention_output_bias=True,
    )


def gguf_values(header: GGUFHeader, architecture: str) -> dict[str, Any]:
    """Make config.json's values of a header, under GPT-2's names."""
    values = gguf_header.to_hf_config(header, architecture, norm="layer")
    return values | {old: values[key] for key, old in _RENAMED.items() if key in values}


GPT2 = Architecture(
    model_type="gpt2",
    defaults={
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    read_config=_to_model_config,
    layout=TensorLayout(
        names=NAMES,
        prefix="transformer.",
        ignored=MASKS,
        transposed=frozenset(f"{_BLOCK}.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    ),
    mlx=TensorLayout(names={name: source.replace("transformer.", "model.") for name, source in NAMES.items()}),
    gguf=GGUFFamily(
        architecture="gpt2",
        to_hf_config=lambda header: gguf_values(header, "gpt2"),
        layout=TensorLayout(names=GGUF_NAMES),
    ),
)
