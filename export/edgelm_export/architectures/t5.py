"""T5 (v1.0, v1.1, Flan), mT5 and umT5: relative positions, RMS norms before each part, scores that are not scaled."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.encoder_decoder import pair
from edgelm_export.architectures.gguf_values import whole_number
from edgelm_export.checkpoints.tensor_map import TensorLayout
from edgelm_export.gguf.token_ids import token_id_values

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
    names = {"model.embed_tokens": "shared", **_CROSS}
    for name, part in _FEED_FORWARDS.items():
        names |= _stack(name, part)
        dense = f"{name}.block.{{i}}.layer.{part}.DenseReluDense"
        names |= {f"model.{name}.layers.{{i}}.mlp.{ours}": f"{dense}.{theirs}" for ours, theirs in inner.items()}
    return TensorLayout(names=names, copies=_COPIES, ignored=_IGNORED)


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
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
    tied = hf_values.flag(values, "tie_word_embeddings")
    # v1.0 alone has the embedding as its head, and alone scales what that reads. transformers 5 writes down only the
    # latter, and that every head is tied.
    scaled = hf_values.flag(values, "scale_decoder_outputs", tied)
    decoder = {
        "num_hidden_layers": hf_values.whole_number(values, "num_decoder_layers", layers),
        "tie_word_embeddings": tied and scaled,
        "logits_scaling": root if scaled else 1.0,
    }
    return pair(values, {**stack, "num_hidden_layers": layers}, {**stack, **decoder})


def _to_mt5_config(values: dict[str, Any]) -> ModelConfig:
    return _to_model_config({**values, "scale_decoder_outputs": False})  # whatever config.json says of it


def _to_umt5_config(values: dict[str, Any]) -> ModelConfig:
    config = _to_model_config(values)
    assert config.encoder is not None  # T5 has one
    encoder = dataclasses.replace(config.encoder, relative_attention_per_layer=True)
    return dataclasses.replace(config, relative_attention_per_layer=True, encoder=encoder)


def _gguf_stack(name: str, layers: str) -> dict[str, str]:
    """Return llama.cpp's names of one stack."""
    ours, theirs = f"model.{name}.layers.{{i}}", f"{layers}.blk.{{i}}"
    return {
        f"model.{name}.relative_attention_bias": f"{layers}.blk.0.attn_rel_b",
        f"{ours}.self_attn.relative_attention_bias": f"{theirs}.attn_rel_b",
        f"{ours}.input_layernorm": f"{theirs}.attn_norm",
        **{f"{ours}.self_attn.{part}_proj": f"{theirs}.attn_{part}" for part in "qkvo"},
        f"{ours}.post_attention_layernorm": f"{theirs}.ffn_norm",
        **{f"{ours}.mlp.{part}_proj": f"{theirs}.ffn_{part}" for part in ("gate", "up", "down")},
        f"model.{name}.norm": f"{layers}.output_norm",
    }


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    **_gguf_stack("encoder", "enc"),
    **_gguf_stack("decoder", "dec"),
    "model.decoder.layers.{i}.pre_cross_attention_layernorm": "dec.blk.{i}.cross_attn_norm",
    **{f"model.decoder.layers.{{i}}.encoder_attn.{part}_proj": f"dec.blk.{{i}}.cross_attn_{part}" for part in "qkvo"},
    "lm_head": "output",
}
_GGUF_KEYS = dict.fromkeys(("decoder_block_count", "decoder_start_token_id", "attention.relative_buckets_count"))


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    """Make config.json's values of a T5, or of the umT5 that llama.cpp calls so too.

    What llama.cpp takes for granted no file says: gates are of gelu, without them there is relu, and from a distance of
    128 on all are in one bucket.
    """
    metadata = header.metadata
    values = gguf_header.to_hf_config(header, _GGUF_KEYS)
    layers = values["num_hidden_layers"]
    return {
        "model_type": "umt5" if any(name.endswith(".blk.1.attn_rel_b.weight") for name in header.shapes) else "t5",
        "vocab_size": values["vocab_size"],
        "d_model": values["hidden_size"],
        "d_kv": values["head_dim"],
        "d_ff": values["intermediate_size"],
        "num_layers": layers,
        "num_decoder_layers": whole_number(metadata, "t5.decoder_block_count", layers),
        "num_heads": values["num_attention_heads"],
        "n_positions": values["max_position_embeddings"],
        "layer_norm_epsilon": values["rms_norm_eps"],
        "relative_attention_num_buckets": whole_number(metadata, "t5.attention.relative_buckets_count"),
        "feed_forward_proj": "gated-gelu" if "enc.blk.0.ffn_gate.weight" in header.shapes else "relu",
        "tie_word_embeddings": values["tie_word_embeddings"],
        "decoder_start_token_id": metadata.get("t5.decoder_start_token_id"),
        **token_id_values(metadata),
    }


T5 = Architecture(
    model_type="t5",
    defaults={
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "vocab_size": 32128,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    null_keys=frozenset({"scale_decoder_outputs"}),
    read_config=_to_model_config,
    layout_of=_layout,
    gguf=GGUFFamily(
        architecture="t5",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=_GGUF_NAMES, ignored=frozenset({"dec.blk.{i}.cross_attn_rel_b.weight"})),
    ),
)
MT5 = dataclasses.replace(
    T5,
    model_type="mt5",
    defaults={
        **T5.defaults,
        "vocab_size": 250112,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    },
    read_config=_to_mt5_config,
    gguf=None,
)
UMT5 = dataclasses.replace(MT5, model_type="umt5", null_keys=frozenset(), read_config=_to_umt5_config)
