"""GPT-J, CodeGen: attention and feed-forward side by side behind one layer norm; heads turn in part, by neighbours."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gpt2, hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_BLOCK = "transformer.h.{i}"
_NAMES = {
    "model.embed_tokens": "transformer.wte",
    "model.layers.{i}.input_layernorm": f"{_BLOCK}.ln_1",
    **{f"model.layers.{{i}}.self_attn.{part}_proj": f"{_BLOCK}.attn.{part}_proj" for part in "qkv"},
    "model.layers.{i}.self_attn.o_proj": f"{_BLOCK}.attn.out_proj",
    "model.layers.{i}.mlp.up_proj": f"{_BLOCK}.mlp.fc_in",
    "model.layers.{i}.mlp.down_proj": f"{_BLOCK}.mlp.fc_out",
    "model.norm": "transformer.ln_f",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    # Heads turn by one base, whatever is said of ropes.
    values = {**values, "rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": None}
    config = gpt2.GPT2.to_model_config(values)
    return dataclasses.replace(
        config,
        position="rope",
        partial_rotary_factor=hf_values.bounded(values, "rotary_dim") / config.head_dim,
    )


GPTJ = Architecture(
    model_type="gptj",
    defaults={"max_position_embeddings": 2048, "rotary_dim": 64, "tie_word_embeddings": False},
    read_config=_to_model_config,
    features={
        "norm_placement": "shared",
        "parallel_residual": True,
        "attention_bias": False,
        "attention_output_bias": False,
        "lm_head_bias": True,
    },
    layout=TensorLayout(names=_NAMES, row_orders=llama.GGUF_ROW_ORDERS, ignored=gpt2.MASKS),
    gguf=None,  # llama.cpp has its name alone
)


# CodeGen: a GPT-J whose queries, values and keys are one tensor, a quarter of the heads at a time.
_FUSED = "transformer.h.{i}.attn.qkv_proj"
_CODEGEN_NAMES = _NAMES | dict.fromkeys((f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"), _FUSED)
_QUARTERS = 4  # which CodeGen was trained on


def _to_codegen_config(values: dict[str, Any]) -> ModelConfig:
    config = GPTJ.read_config(values)
    if config.num_attention_heads % _QUARTERS:
        raise CheckpointError(
            f"config.json: n_head is {config.num_attention_heads}; of CodeGen it must be a multiple of {_QUARTERS}."
        )
    return config


CODEGEN = dataclasses.replace(
    GPTJ,
    model_type="codegen",
    read_config=_to_codegen_config,
    layout=TensorLayout(
        names=_CODEGEN_NAMES,
        row_orders=GPTJ.layout.row_orders,
        by_quarter=frozenset({_FUSED}),
        ignored=frozenset({"transformer.h.{i}.attn.causal_mask"}),  # which older versions of transformers stored
    ),
)
