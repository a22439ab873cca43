"""T5 (v1.0, v1.1 and Flan): relative positions, RMS norms before each part, scores that are not scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.encoder_decoder import pair
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key.
_DEFAULTS: Mapping[str, Any] = {
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "vocab_size": 32128,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "eos_token_id": 1,
}
# Relative positions have no end; this is what the published models were trained on.
_CONTEXT = 512


def _stack(name: str, feed_forward: int) -> dict[str, str]:
    """Return the names of one stack, whose feed-forward is this part of a block."""
    block, ours = f"{name}.block.{{i}}.layer", f"model.{name}.layers.{{i}}"
    dense = f"{block}.{feed_forward}.DenseReluDense"
    return {
        f"model.{name}.relative_attention_bias": f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias",
        f"{ours}.self_attn.relative_attention_bias": f"{block}.0.SelfAttention.relative_attention_bias",
        f"{ours}.input_layernorm": f"{block}.0.layer_norm",
        **{f"{ours}.self_attn.{part}_proj": f"{block}.0.SelfAttention.{part}" for part in "qkvo"},
        f"{ours}.post_attention_layernorm": f"{block}.{feed_forward}.layer_norm",
        f"{ours}.mlp.down_proj": f"{dense}.wo",
        f"model.{name}.norm": f"{name}.final_layer_norm",
    }


_CROSS = {
    "model.decoder.layers.{i}.pre_cross_attention_layernorm": "decoder.block.{i}.layer.1.layer_norm",
    **{
        f"model.decoder.layers.{{i}}.encoder_attn.{part}_proj": f"decoder.block.{{i}}.layer.1.EncDecAttention.{part}"
        for part in "qkvo"
    },
}
_FEED_FORWARDS = {"encoder": 1, "decoder": 2}
_COPIES = frozenset({"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"})
# T5's own code never read it.
_IGNORED = frozenset({"decoder.block.{i}.layer.1.EncDecAttention.relative_attention_bias.weight"})


def _layout(config: ModelConfig) -> TensorLayout:
    """Name the tensors; the first matrix of a feed-forward is called otherwise where a gate stands beside it."""
    inner = {"gate_proj": "wi_0", "up_proj": "wi_1"} if config.mlp_gated else {"up_proj": "wi"}
    names = {"model.embed_tokens": "shared", **_CROSS, "lm_head": "lm_head"}
    for name, part in _FEED_FORWARDS.items():
        names |= _stack(name, part)
        dense = f"{name}.block.{{i}}.layer.{part}.DenseReluDense"
        names |= {f"model.{name}.layers.{{i}}.mlp.{ours}": f"{dense}.{theirs}" for ours, theirs in inner.items()}
    return TensorLayout(names=names, copies=_COPIES, ignored=_IGNORED)


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    scales = values.get("scale_decoder_outputs", ...)
    values = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
    projection = str(values["feed_forward_proj"])
    gate, _, activation = projection.rpartition("-")
    # In T5's own words, "gated-gelu" is the tanh form.
    named = {"dense_act_fn": values.get("dense_act_fn", "gelu_new" if projection == "gated-gelu" else activation)}
    heads = hf_values.whole_number(values, "num_heads")
    layers = hf_values.whole_number(values, "num_layers")
    root = abs(hf_values.number(values, "d_model", 0.0)) ** 0.5
    stack = {
        "intermediate_size": hf_values.whole_number(values, "d_ff"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hf_values.whole_number(values, "d_kv"),
        "max_position_embeddings": hf_values.whole_number(values, "n_positions", _CONTEXT),
        "norm_eps": hf_values.number(values, "layer_norm_epsilon", 1e-6),
        "position": "relative",
        "relative_attention_num_buckets": hf_values.whole_number(values, "relative_attention_num_buckets", 32),
        "relative_attention_max_distance": hf_values.whole_number(values, "relative_attention_max_distance", 128),
        "attention_multiplier": 1.0,
        "hidden_act": hf_values.activation(named, "relu", "dense_act_fn"),
        "mlp_gated": gate == "gated",
    }
    tied = hf_values.flag({"tie_word_embeddings": True, **values}, "tie_word_embeddings")
    # v1.0 alone has the embedding as its head, and alone scales what that reads. transformers 5 writes down only the
    # latter, and that every head is tied.
    scaled = tied if scales is ... else scales is not None and hf_values.flag(values, "scale_decoder_outputs")
    decoder = {
        "num_hidden_layers": hf_values.whole_number(values, "num_decoder_layers", layers),
        "tie_word_embeddings": tied and scaled,
        "logits_scaling": root if scaled else 1.0,
    }
    return pair(values, {**stack, "num_hidden_layers": layers}, {**stack, **decoder})


T5 = Architecture(model_type="t5", read_config=_to_model_config, layout_of=_layout, gguf=None)
