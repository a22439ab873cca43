"""GLM-4 and GLM-Edge: a Llama that turns the first part of each head, by neighbouring dimensions.

GLM-4-0414 (model_type glm4) also norms what attention and feed-forward add. GLM-4.5 and 4.6 (glm4_moe) have
experts; ChatGLM is a GLM-4 in the form of its author's own code.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gemma import GGUF_NAMES
from edgelm_export.checkpoints.tensor_map import TensorLayout

_NAMES = {
    "model.layers.{i}.mlp.gate_proj": "model.layers.{i}.mlp.gate_up_proj",
    "model.layers.{i}.mlp.up_proj": "model.layers.{i}.mlp.gate_up_proj",
}
_NAMES_4 = _NAMES | {
    "model.layers.{i}.post_attention_layernorm": "model.layers.{i}.post_self_attn_layernorm",
    "model.layers.{i}.pre_feedforward_layernorm": "model.layers.{i}.post_attention_layernorm",
    "model.layers.{i}.post_feedforward_layernorm": "model.layers.{i}.post_mlp_layernorm",
}
_GGUF_GATE = {"model.layers.{i}.mlp.gate_proj": "blk.{i}.ffn_up"}
_GGUF_NAMES = llama.GGUF_NAMES | _GGUF_GATE
_GGUF_NAMES_4 = GGUF_NAMES | _GGUF_GATE


def _gguf_values(header: GGUFHeader) -> dict[str, Any]:
    keys = {gguf_header.SECTIONS: None}  # of a text part, whose positions have three numbers, the same
    values = gguf_header.to_hf_config(header, keys, turns_a_part=True)
    has_biases = bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & header.shapes.keys())
    return {**values, "attention_bias": has_biases}


GLM = Architecture(
    model_type="glm",
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-07,
        "attention_bias": True,
        "eos_token_id": [151329, 151336, 151338],
    },
    null_keys=frozenset(),
    read_config=partial(llama.to_model_config, partial=0.5),
    features={"mlp_bias": False, "attention_output_bias": False},
    layout=TensorLayout(names=_NAMES, row_orders=llama.GGUF_ROW_ORDERS),
    gguf=GGUFFamily(
        architecture="chatglm",  # as its first version was called
        to_hf_config=_gguf_values,
        layout=TensorLayout(names=_GGUF_NAMES, row_orders=llama.GGUF_ROW_ORDERS),
    ),
)
GLM4 = dataclasses.replace(
    GLM,
    model_type="glm4",
    features={**GLM.features, "norm_placement": "both"},
    layout=TensorLayout(names=_NAMES_4, row_orders=llama.GGUF_ROW_ORDERS),
    gguf=GGUFFamily(
        architecture="glm4",
        to_hf_config=_gguf_values,
        layout=TensorLayout(names=_GGUF_NAMES_4, row_orders=llama.GGUF_ROW_ORDERS),
    ),
)


# GLM-4.5 and 4.6: a Llama that turns the first half of each head, with experts behind the first layers.
_GLM4_MOE_GGUF_NAMES = (
    experts.GGUF_NAMES
    | llama.GGUF_QK_NORMS
    | {"model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm"}
)


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    keys = {gguf_header.SECTIONS: None}  # of GLM-4.5V, whose three are the same for a text
    values = sigmoid_experts.gguf_values(header, keys, turns_a_part=True)
    return values | {"use_qk_norm": "blk.0.attn_q_norm.weight" in header.shapes}


# In safetensors, layers that guess further tokens stand behind the others.
GLM4_MOE = Architecture(
    model_type="glm4_moe",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    read_config=partial(sigmoid_experts.to_model_config, partial=0.5),
    features={"attention_output_bias": False},
    layout=TensorLayout(has_more_layers=True),
    mlx=TensorLayout(names=experts.MLX_NAMES),
    gguf=GGUFFamily(
        architecture="glm4moe",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=_GLM4_MOE_GGUF_NAMES),
        has_experts=True,
    ),
)


# ChatGLM: a GLM-4 in the form of its author's own code, with queries, keys and values in one tensor.
_LAYER, _THEIRS = "model.layers.{i}", "transformer.encoder.layers.{i}"
_CHATGLM_NAMES = {
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


def _to_chatglm_config(values: dict[str, Any]) -> ModelConfig:
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
    read_config=_to_chatglm_config,
    features={"mlp_bias": False, "attention_output_bias": False},
    layout=TensorLayout(
        names=_CHATGLM_NAMES,
        row_orders=llama.GGUF_ROW_ORDERS,
    ),
    is_in_transformers=False,
    gguf=None,  # where it is a GLM
)
