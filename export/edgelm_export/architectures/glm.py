"""GLM-4 and GLM-Edge: a Llama that turns the first part of each head, by neighbouring dimensions.

GLM-4-0414 (model_type glm4) also norms what attention and feed-forward add.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from edgelm_export.architectures import gguf_header, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gemma2 import GGUF_NAMES
from edgelm_export.tensor_map import TensorLayout

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
