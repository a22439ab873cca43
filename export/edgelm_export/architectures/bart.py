"""BART: learned positions that begin at row 2, layer norms of the residual stream, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.layer_features import CROSS_NORMS, NORM_PLACEMENTS
from edgelm_export.architectures import hf_values
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.encoder_decoder import pair
from edgelm_export.tensor_map import TensorLayout


def _stack_names(name: str, placement: str) -> dict[str, str]:
    layer, parts = f"model.{name}.layers.{{i}}", ("q_proj", "k_proj", "v_proj")
    of_attention, of_feed_forward = filter(None, NORM_PLACEMENTS[placement])
    names = {
        f"model.{name}.embed_positions": f"model.{name}.embed_positions",
        f"model.{name}.embed_norm": f"model.{name}.layernorm_embedding",
        f"model.{name}.norm": f"model.{name}.layer_norm",
        **{f"{layer}.self_attn.{part}": f"{layer}.self_attn.{part}" for part in parts},
        f"{layer}.self_attn.o_proj": f"{layer}.self_attn.out_proj",
        f"{layer}.{of_attention}": f"{layer}.self_attn_layer_norm",
        f"{layer}.mlp.up_proj": f"{layer}.fc1",
        f"{layer}.mlp.down_proj": f"{layer}.fc2",
        f"{layer}.{of_feed_forward}": f"{layer}.final_layer_norm",
    }
    if name == "encoder":
        return names
    (of_cross_attention,) = filter(None, CROSS_NORMS[placement])
    return names | {
        **{f"{layer}.encoder_attn.{part}": f"{layer}.encoder_attn.{part}" for part in parts},
        f"{layer}.encoder_attn.o_proj": f"{layer}.encoder_attn.out_proj",
        f"{layer}.{of_cross_attention}": f"{layer}.encoder_attn_layer_norm",
    }


def names(placement: str) -> dict[str, str]:
    """Return the names of the tensors of both stacks, whose norms stand there in a block (`NORM_PLACEMENTS`)."""
    return {
        "model.embed_tokens": "model.shared",
        **_stack_names("encoder", placement),
        **_stack_names("decoder", placement),
        "lm_head.weight": "lm_head.weight",
        "lm_head.bias": "final_logits_bias",
    }


_COPIES = frozenset({"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"})
_LOGITS_BIAS = frozenset({"final_logits_bias"})
_ROWS_BEFORE = dict.fromkeys(("model.encoder.embed_positions", "model.decoder.embed_positions"), 2)


def to_model_config(values: Mapping[str, Any], *, lm_head_bias: bool = True, **features: Any) -> ModelConfig:
    """Return the config of a BART, or of one with other `features` of its stacks."""
    size = hf_values.whole_number(values, "d_model")
    root = abs(hf_values.number(values, "d_model", 0.0)) ** 0.5  # of a number that a float holds
    stacks = []
    for name in ("encoder", "decoder"):
        heads = hf_values.whole_number(values, f"{name}_attention_heads", 16)
        stack = {
            "intermediate_size": hf_values.whole_number(values, f"{name}_ffn_dim", 4096),
            "num_hidden_layers": hf_values.whole_number(values, f"{name}_layers", 12),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": size // max(1, heads),
            "max_position_embeddings": hf_values.whole_number(values, "max_position_embeddings", 1024),
            "norm": "layer",
            "norm_placement": "residual",
            "final_norm": False,
            "embedding_norm": True,
            "embedding_multiplier": root if hf_values.flag(values, "scale_embedding") else 1.0,
            "position": "learned",
            "hidden_act": hf_values.activation(values, "gelu", "activation_function"),
            "mlp_gated": False,
            "mlp_bias": True,
            "attention_bias": True,
            "attention_output_bias": True,
        }
        stacks.append(stack | features)
    tied = hf_values.flag({"tie_word_embeddings": True, **values}, "tie_word_embeddings")
    return pair(values, stacks[0], {**stacks[1], "tie_word_embeddings": tied, "lm_head_bias": lm_head_bias})


BART = Architecture(
    model_type="bart",
    defaults={
        "vocab_size": 50265,
        "d_model": 1024,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
    null_keys=frozenset(),
    read_config=to_model_config,
    layout=TensorLayout(names=names("residual"), copies=_COPIES, rows_before=_ROWS_BEFORE, stacks_of_one=_LOGITS_BIAS),
    gguf=None,
)
