"""ChatGLM: a GLM-4 in the form of its author's own code, with queries, keys and values in one tensor."""

from __future__ import annotations

from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.tensor_map import TensorLayout

_LAYER, _THEIRS = "model.layers.{i}", "transformer.encoder.layers.{i}"
_NAMES = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    f"{_LAYER}.input_layernorm": f"{_THEIRS}.input_layernorm",
    **{f"{_LAYER}.self_attn.{part}_proj": f"{_THEIRS}.self_attention.query_key_value" for part in "qkv"},
    f"{_LAYER}.self_attn.o_proj": f"{_THEIRS}.self_attention.dense",
    f"{_LAYER}.post_attention_layernorm": f"{_THEIRS}.post_attention_layernorm",
    **{f"{_LAYER}.mlp.{part}_proj": f"{_THEIRS}.mlp.dense_h_to_4h" for part in ("gate", "up")},
    f"{_LAYER}.mlp.down_proj": f"{_THEIRS}.mlp.dense_4h_to_h",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    theta = 10000.0 * hf_values.number(values, "rope_ratio", 1.0)
    return llama.to_model_config({**values, "rope_theta": theta}, partial=0.5)


CHATGLM = Architecture(
    model_type="chatglm",
    defaults={"rms_norm_eps": 1e-5},
    # The first ChatGLM is another model.
    fixed={
        "position_encoding_2d": False,
        "multi_query_attention": True,
        "rmsnorm": True,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "add_bias_linear": False,
    },
    renamed={
        "vocab_size": "padded_vocab_size",
        "intermediate_size": "ffn_hidden_size",
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "multi_query_group_num",
        "head_dim": "kv_channels",
        "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layernorm_epsilon",
        "attention_bias": "add_qkv_bias",
    },
    read_config=_to_model_config,
    features={"mlp_bias": False, "attention_output_bias": False},
    layout=TensorLayout(
        names=_NAMES,
        prefix="transformer.",
        ignored=frozenset({"transformer.rotary_pos_emb.inv_freq"}),
        row_orders=llama.GGUF_ROW_ORDERS,
    ),
    is_in_transformers=False,
    gguf=None,  # where it is a GLM
)
